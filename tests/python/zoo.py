"""Exports networks with random weights to ONNX, to try `pleach inspect --prove` on graphs that nobody here drew.

    python3 -m venv venv && venv/bin/pip install torch torchvision transformers timm onnx onnxscript onnxruntime
    venv/bin/python zoo.py FOLDER [NAME...]

Each network is exported by the TorchScript exporter (`NAME.onnx`) and, where it can, by the dynamo one (`NAME-dynamo.onnx`). No weights are
fetched: equality of outputs says nothing about accuracy, so random ones do. BatchNormalization gets random statistics, as
those of a fresh network would hide mistakes. What an exporter cannot do is said and skipped.
"""

import sys
import traceback
import warnings
from pathlib import Path

import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.backends.mha.set_fastpath_enabled(False)  # one operator that no exporter knows
ZOO = {}


def entry(opset=17, exporters=("script", "dynamo"), dynamic=True):
    def add(make):
        ZOO[make.__name__] = (make, opset, exporters, dynamic)
        return make

    return add


def image(side=224, channels=3):
    return {"image": torch.rand(1, channels, side, side)}


def tokens(length=32, vocabulary=1000, names=("input_ids", "attention_mask")):
    made = {"input_ids": torch.randint(0, vocabulary, (1, length)), "attention_mask": torch.ones(1, length, dtype=torch.long)}
    return {name: made[name] for name in names}


class Pick(nn.Module):
    """A network whose output is one tensor of what it returns; its inputs go in by name."""

    def __init__(self, network, names, pick):
        super().__init__()
        self.network, self.names, self.pick = network, names, pick

    def forward(self, *inputs):
        return self.pick(self.network(**dict(zip(self.names, inputs))))


def vision(name, side=224, **options):
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options), image(side)


def torchvision_entry(name, side=224, opset=17, **options):
    def make():
        return vision(name, side, **options)

    make.__name__ = name
    entry(opset)(make)


for name, side, opset in [
    ("resnet18", 224, 7), ("resnet50", 224, 13), ("vgg11", 224, 9), ("vgg11_bn", 224, 11), ("mobilenet_v2", 224, 12),
    ("mobilenet_v3_small", 224, 17), ("efficientnet_b0", 224, 17), ("efficientnet_v2_s", 128, 18), ("densenet121", 224, 17),
    ("googlenet", 224, 17), ("inception_v3", 299, 17), ("shufflenet_v2_x1_0", 224, 17), ("regnet_y_400mf", 224, 17),
    ("regnet_x_400mf", 224, 16), ("convnext_tiny", 224, 17), ("vit_b_32", 224, 17), ("swin_t", 224, 17), ("swin_v2_t", 256, 17),
    ("maxvit_t", 224, 17), ("mnasnet1_0", 224, 17), ("squeezenet1_1", 224, 17), ("alexnet", 224, 17), ("wide_resnet50_2", 64, 17),
    ("resnext50_32x4d", 64, 17),
]:
    torchvision_entry(name, side, opset, **({"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}))


def timm_entry(name, side=224, **options):
    def make():
        import timm

        return timm.create_model(name, pretrained=False, **options), image(side)

    make.__name__ = "timm_" + name
    entry(17)(make)


for name, side in [
    ("deit_tiny_patch16_224", 224), ("mixer_s32_224", 224), ("resnest14d", 224), ("res2net50_26w_4s", 224), ("ghostnet_100", 224),
    ("mobilevit_xxs", 256), ("mobilenetv4_conv_small", 224), ("efficientformer_l1", 224), ("poolformer_s12", 224), ("hrnet_w18_small", 224),
    ("dla34", 224), ("vovnet39a", 224), ("repvgg_a0", 224), ("levit_128s", 224), ("edgenext_xx_small", 256), ("fastvit_t8", 256),
    ("coatnet_pico_rw_224", 224), ("nfnet_f0", 192), ("tf_efficientnet_lite0", 224), ("cspresnet50", 224), ("skresnet18", 224),
    ("legacy_seresnet18", 224), ("xcit_nano_12_p16_224", 224), ("convmixer_768_32", 224), ("repghostnet_100", 224), ("starnet_s1", 224),
    ("eva02_tiny_patch14_224", 224), ("gmlp_s16_224", 224), ("pvt_v2_b0", 224), ("tiny_vit_5m_224", 224), ("davit_tiny", 224),
]:
    timm_entry(name, side)


@entry()
def deeplabv3():
    import torchvision

    network = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    return Pick(network, ["x"], lambda out: out["out"]), {"input": torch.rand(1, 3, 128, 128)}


@entry()
def fcn_resnet50():
    import torchvision

    network = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    return Pick(network, ["x"], lambda out: out["out"]), {"input": torch.rand(1, 3, 96, 96)}


@entry()
def lraspp():
    import torchvision

    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return Pick(network, ["x"], lambda out: out["out"]), {"input": torch.rand(1, 3, 128, 128)}


@entry(11, ("script",), False)
def ssdlite():
    import torchvision

    network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, score_thresh=0.0)
    return network, {"image": [torch.rand(3, 320, 320)]}


@entry()
def unet():
    def twice(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(4, b), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = twice(3, 16), twice(16, 32), twice(32, 64)
            self.up, self.d = nn.ConvTranspose2d(64, 32, 2, 2), twice(64, 32)
            self.e, self.out = twice(48, 16), nn.Conv2d(16, 5, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(nn.functional.max_pool2d(a, 2))
            c = self.c(nn.functional.max_pool2d(b, 2))
            d = self.d(torch.cat([self.up(c), b], 1))
            d = nn.functional.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
            return self.out(self.e(torch.cat([d, a], 1)))

    return UNet(), image(64)


@entry()
def recurrent():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm = nn.Embedding(500, 64), nn.LSTM(64, 48, 2, batch_first=True, bidirectional=True)
            self.gru, self.dense, self.out = nn.GRU(96, 40, batch_first=True), nn.Linear(40, 64), nn.Linear(64, 9)

        def forward(self, ids):
            return self.out(torch.relu(self.dense(self.gru(self.lstm(self.embed(ids))[0])[0])))

    return Tagger(), {"input_ids": torch.randint(0, 500, (1, 16))}


@entry()
def speech_convs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv1d(40, 64, 5, 2, 2), nn.Conv1d(64, 64, 3, padding=2, dilation=2, groups=64), nn.Conv1d(64, 128, 1)
            self.norm, self.dense, self.out = nn.BatchNorm1d(128), nn.Linear(128, 96), nn.Linear(96, 10)

        def forward(self, x):
            a, b = self.norm(self.c(self.b(self.a(x)))).chunk(2, 1)
            y = nn.functional.glu(torch.cat([a, b * torch.sigmoid(a)], 1), 1).mean(2)
            return self.out(nn.functional.gelu(self.dense(torch.cat([y, y], 1))))

    return Net(), {"features": torch.rand(1, 40, 100)}


def language(name, config, kind="AutoModel", pick="last_hidden_state", names=("input_ids", "attention_mask"), extra=None, **entry_options):
    def make():
        import transformers

        settings = getattr(transformers, config[0])(**config[1])
        network = getattr(transformers, kind).from_config(settings) if kind.startswith("Auto") else getattr(transformers, kind)(settings)
        inputs = extra() if extra else tokens(names=names)
        return Pick(network, list(inputs), lambda out: out[pick]), inputs

    make.__name__ = name
    entry(**entry_options)(make)


SMALL = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
language("bert", ("BertConfig", SMALL))
language("bert_tagger", ("BertConfig", SMALL), "AutoModelForTokenClassification", "logits")
language("roberta", ("RobertaConfig", SMALL), "AutoModelForSequenceClassification", "logits")
language("distilbert", ("DistilBertConfig", {"vocab_size": 1000, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}))
language("albert", ("AlbertConfig", {**SMALL, "embedding_size": 32}))
language("electra", ("ElectraConfig", {**SMALL, "embedding_size": 32}))
language("deberta_v2", ("DebertaV2Config", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}))
language("mpnet", ("MPNetConfig", SMALL))
language("modernbert", ("ModernBertConfig", {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}))
language("gpt2", ("GPT2Config", {"vocab_size": 1000, "n_embd": 64, "n_layer": 2, "n_head": 4, "use_cache": False}), "AutoModelForCausalLM", "logits")
GROUPED = {**SMALL, "num_key_value_heads": 2, "use_cache": False}
language("llama", ("LlamaConfig", GROUPED), "AutoModelForCausalLM", "logits")
language("qwen2", ("Qwen2Config", GROUPED), "AutoModelForCausalLM", "logits")
language("qwen3", ("Qwen3Config", {**GROUPED, "head_dim": 16}), "AutoModelForCausalLM", "logits")
language("gemma", ("GemmaConfig", {**GROUPED, "head_dim": 16}), "AutoModelForCausalLM", "logits")
language("phi", ("PhiConfig", {**SMALL, "use_cache": False}), "AutoModelForCausalLM", "logits")
language("gpt_neox", ("GPTNeoXConfig", {**SMALL, "use_cache": False}), "AutoModelForCausalLM", "logits")
language("opt", ("OPTConfig", {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "word_embed_proj_dim": 64, "use_cache": False}), "AutoModelForCausalLM", "logits")
language("bloom", ("BloomConfig", {"vocab_size": 1000, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False}), "AutoModelForCausalLM", "logits")
T5 = {"vocab_size": 1000, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "use_cache": False}
language("t5_encoder", ("T5Config", T5), "T5EncoderModel")
language("t5", ("T5Config", T5), "AutoModelForSeq2SeqLM", "logits", extra=lambda: {**tokens(), "decoder_input_ids": torch.randint(0, 1000, (1, 8))})
WHISPER = {"vocab_size": 1000, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 80, "max_source_positions": 100, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
language("whisper", ("WhisperConfig", WHISPER), "AutoModelForSpeechSeq2Seq", "logits", extra=lambda: {"input_features": torch.rand(1, 80, 200), "decoder_input_ids": torch.randint(0, 1000, (1, 8))}, dynamic=False)
language("wav2vec2", ("Wav2Vec2Config", {**SMALL, "conv_dim": [32] * 3, "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}), extra=lambda: {"input_values": torch.rand(1, 4000)}, dynamic=False)
CLIP = {"text_config": {**SMALL, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}, "projection_dim": 32}
language("clip", ("CLIPConfig", CLIP), "AutoModel", "logits_per_image", extra=lambda: {**tokens(16), "pixel_values": torch.rand(1, 3, 64, 64)}, dynamic=False)
language("segformer", ("SegformerConfig", {}), "SegformerForSemanticSegmentation", "logits", extra=lambda: {"pixel_values": torch.rand(1, 3, 128, 128)})
language("detr", ("YolosConfig", {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 10}), "YolosForObjectDetection", "logits", extra=lambda: {"pixel_values": torch.rand(1, 3, 64, 64)}, dynamic=False)


def prepared(network):
    """In inference mode, with statistics and scales that are not those of a fresh network."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


def export(name, folder):
    make, opset, exporters, dynamic = ZOO[name]
    for exporter in exporters:
        torch.manual_seed(7)
        suffix = "" if exporter == "script" else "-dynamo"
        path = folder / f"{name}{suffix}.onnx"
        if path.exists():
            continue
        try:
            with torch.no_grad():
                network, inputs = make()
                network = prepared(network)
                names, values = list(inputs), tuple(inputs.values())
                options = {"input_names": names, "output_names": ["output"]}
                if exporter == "script":
                    axes = {n: {0: "batch", **({1: "sequence"} if v.dim() == 2 and v.dtype == torch.long else {})} for n, v in inputs.items() if dynamic}
                    axes.update({"output": {0: "batch"}} if dynamic else {})
                    torch.onnx.export(network, values, str(path), opset_version=opset, dynamic_axes=axes, dynamo=False, **options)
                else:
                    torch.onnx.export(network, values, str(path), opset_version=max(opset, 18), dynamo=True, external_data=False, verbose=False, **options)
            print("made", path.name, flush=True)
        except Exception as error:
            path.unlink(missing_ok=True)
            print("cannot", path.name, type(error).__name__, str(error).strip().splitlines()[:1], flush=True)
            if "-v" in sys.argv:
                traceback.print_exc()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [a for a in sys.argv[2:] if a != "-v"]
    for name in ZOO:
        if not wanted or name in wanted:
            export(name, folder)
