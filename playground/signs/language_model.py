"""Write the embedded model's language model by itself, without projector: what `scripts/pretrain.sh` begins with.

python -m playground.signs.language_model OUT
"""

import argparse
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.save import all_or_nothing
from llava.model.tokenizer import save_tokenizer
from playground.signs.export import LLAVA_FOLDER
from playground.signs.train import DEFAULT_OUT


def write_language_model(out: Path) -> None:
    """Write the language model to `out`, unless it holds one already."""
    if (out / "config.json").exists():
        return
    tokenizer, llava, *_ = load_pretrained_model(str(DEFAULT_OUT / LLAVA_FOLDER), device="cpu")
    own = LlamaConfig().to_dict()  # the names that a Llama has, without those of LLaVA
    config = LlamaConfig(**{name: value for name, value in llava.config.to_dict().items() if name in own})
    config.model_type, config.architectures = "llama", ["LlamaForCausalLM"]
    language_model = LlamaForCausalLM(config)
    weights = language_model.state_dict().keys()
    language_model.load_state_dict({key: value for key, value in llava.state_dict().items() if key in weights})
    with all_or_nothing(out) as folder:
        language_model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    write_language_model(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
