"""Prunes a model with onnxsim: whole channels by calibrated importance, then normalisations fitted to the dense model's activations.

usage: rival.py MODEL.onnx CALIBRATION.npz SPARSITY OUT.onnx
"""

import sys

import numpy as np
import onnx
import onnxsim
from onnxsim import bn_recovery, pruning

ROWS, BATCH = 512, 32


def main():
    model, data, sparsity, out = onnx.load(sys.argv[1]), np.load(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    names = [i.name for i in model.graph.input]
    rows = min(ROWS, len(data[names[0]]))
    batches = [{n: data[n][at : at + BATCH] for n in names} for at in range(0, rows, BATCH)]
    dense, _ = onnxsim.simplify(model)
    pruned = pruning.apply_structured_wanda_pruning(dense, calibration_data=batches, sparsity=sparsity)
    if any(n.op_type == "Conv" for n in pruned.graph.node):
        pruned = bn_recovery.recover_batch_norm(pruned, calibration_data=batches, target_model=dense)
    pruned, _ = onnxsim.simplify(pruned)
    onnx.save(pruned, out)


if __name__ == "__main__":
    main()
