"""Clients of the Open Inference Protocol that others wrote, against a running agent.

usage: clients.py triton|kserve ADDRESS TOKEN SOCKET MODEL EXPECTED

EXPECTED holds the little-endian float32 of the answer to x[i] = (i % 17) / 17. The two cannot share a process: both register
the protocol's messages.
"""

import asyncio
import sys

import httpx
import numpy as np

if sys.argv[1] == "triton":
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http
    from tritonclient.utils import InferenceServerException
else:
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

WHICH, ADDRESS, TOKEN, SOCKET, MODEL, EXPECTED = sys.argv[1:]
EXPECTED = np.fromfile(EXPECTED, dtype="<f4")
AUTHORITY = ("grpc.default_authority", "localhost")
HEADERS = {"authorization": f"Bearer {TOKEN}"}


def sample(metadata):
    name, datatype, shape = metadata
    assert datatype == "FP32", metadata
    shape = [1 if axis < 0 else axis for axis in shape]
    count = int(np.prod(shape))
    return name, (np.arange(count) % 17 / np.float32(17)).astype(np.float32).reshape(shape)


def same(answer, times=1):
    assert np.allclose(answer.reshape(-1), np.tile(EXPECTED, times), atol=1e-3), answer


def refused(call, *words):
    try:
        call()
    except InferenceServerException as problem:
        assert any(word in str(problem.status()) for word in words), problem
    else:
        raise AssertionError("expected a refusal")


def triton_over_http():
    # A copy for each call: the client adds its own headers to what it is given.
    with triton_http.InferenceServerClient(ADDRESS) as client:
        assert client.is_server_live(HEADERS) and client.is_server_ready(HEADERS) and client.is_model_ready(MODEL, headers=dict(HEADERS))
        assert not client.is_model_ready("nobody", headers=dict(HEADERS)) and not client.is_server_live()
        assert "binary_tensor_data" in client.get_server_metadata(HEADERS)["extensions"]
        assert [m["state"] for m in client.get_model_repository_index(HEADERS)] == ["READY"]
        metadata = client.get_model_metadata(MODEL, headers=dict(HEADERS))
        given = metadata["inputs"][0]
        name, x = sample((given["name"], given["datatype"], given["shape"]))
        output = metadata["outputs"][0]["name"]
        for rows in (1, 3):
            batch = np.repeat(x, rows, axis=0)
            for binary_in in (True, False):
                for binary_out in (True, False):
                    given = triton_http.InferInput(name, list(batch.shape), "FP32")
                    given.set_data_from_numpy(batch, binary_data=binary_in)
                    wanted = [triton_http.InferRequestedOutput(output, binary_data=binary_out)]
                    answer = client.infer(MODEL, [given], outputs=wanted, request_id="r-1", headers=dict(HEADERS))
                    assert answer.get_response()["id"] == "r-1"
                    same(answer.as_numpy(output), rows)
        pending = [client.async_infer(MODEL, [given], headers=dict(HEADERS)) for _ in range(8)]
        [same(p.get_result().as_numpy(output), 3) for p in pending]
        refused(lambda: client.infer("nobody", [given], headers=dict(HEADERS)), "404")
        refused(lambda: client.infer(MODEL, [given]), "401")
        wrong = triton_http.InferInput(name, [1], "FP32")
        wrong.set_data_from_numpy(np.zeros(1, np.float32))
        refused(lambda: client.infer(MODEL, [wrong], headers=dict(HEADERS)), "400")


def triton_over_grpc(url, headers):
    with triton_grpc.InferenceServerClient(url, channel_args=[AUTHORITY]) as client:
        assert client.is_server_live(headers) and client.is_server_ready(headers) and client.is_model_ready(MODEL, headers=headers)
        assert client.get_server_metadata(headers).name == "pleach-agent"
        assert [m.state for m in client.get_model_repository_index(headers).models] == ["READY"]
        metadata = client.get_model_metadata(MODEL, headers=headers)
        name, x = sample((metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)))
        output = metadata.outputs[0].name
        given = triton_grpc.InferInput(name, list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        answer = client.infer(MODEL, [given], request_id="r-2", headers=headers, client_timeout=30)
        assert answer.get_response().id == "r-2"
        same(answer.as_numpy(output))
        refused(lambda: client.infer("nobody", [given], headers=headers), "NOT_FOUND")
        refused(lambda: client.infer(MODEL, [given], headers=headers, timeout=1), "DEADLINE_EXCEEDED")
        if headers:
            refused(lambda: client.infer(MODEL, [given]), "UNAUTHENTICATED")


async def kserve():
    metadata = httpx.get(f"http://{ADDRESS}/v2/models/{MODEL}", headers=HEADERS).json()["inputs"][0]
    name, x = sample((metadata["name"], metadata["datatype"], metadata["shape"]))

    def request(binary):
        given = InferInput(name, list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        return InferRequest(model_name=MODEL, infer_inputs=[given], request_id="r-3")

    socket = httpx.AsyncHTTPTransport(uds=SOCKET)
    for config, base, headers in [
        (RESTConfig(protocol="v2"), f"http://{ADDRESS}", HEADERS),
        (RESTConfig(protocol="v2", transport=socket), "http://device", {}),
    ]:
        client = InferenceRESTClient(config)
        assert await client.is_server_live(base, headers=headers) and await client.is_server_ready(base, headers=headers)
        assert await client.is_model_ready(base, MODEL, headers=headers)
        for binary in (True, False):
            answer = await client.infer(base, request(binary), model_name=MODEL, headers=dict(headers))
            assert answer.id == "r-3"
            same(answer.outputs[0].as_numpy())
    client = InferenceGRPCClient(f"unix:{SOCKET}", channel_args=[AUTHORITY])
    assert await client.is_server_ready() and await client.is_model_ready(MODEL)
    answer = await client.infer(request(True))
    assert answer.id == "r-3"
    same(answer.outputs[0].as_numpy())
    await client.close()


if WHICH == "triton":
    triton_over_http()
    triton_over_grpc(ADDRESS, HEADERS)
    triton_over_grpc(f"unix:{SOCKET}", None)
else:
    asyncio.run(kserve())
