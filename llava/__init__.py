"""LLaVA with VisionZip: upstream's module paths, names and checkpoint keys, written for transformers 5."""


def __getattr__(name: str):
    # Upstream exports the model class here; loaded on demand, so that `import llava` needs neither torch nor seconds.
    if name == "LlavaLlamaForCausalLM":
        from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
