"""Script of llama.cpp's environment: `llama_cpp_child.py MODEL [ADAPTER …]` serves a model over HTTP until its stdin is closed.

The first line on stdout is the address. Keys and values leak between adapters through the default prompt cache, so it is off.
The cache of the running request is float32 instead of float16, which would turn near ties of tiny models.
"""

import sys

from xllamacpp import CommonAdapterLoraInfo, CommonParams, Server

FLOAT32, OFF = 0, 0  # of `enum ggml_type` and `enum llama_flash_attn_type`


def main() -> None:
    model, *adapters = sys.argv[1:]
    params = CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = 512, 1
    params.cpuparams.n_threads = 1
    params.cache_ram_mib = 0
    params.cache_type_k = params.cache_type_v = FLOAT32
    params.flash_attn_type = OFF
    params.verbosity = -1
    if adapters:
        params.lora_adapters = [CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    server = Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
