"""Numbers of commands that make no sense are refused before anything is loaded, and their option is named."""

import pytest

from llava.data import subset
from llava.eval import model_vqa_loader, run
from llava.perf.bench import __main__ as bench
from llava.serve import cli, demo

COUNTS = ["0", "-1", "1.5", "nan"]
LOADER = {
    "--temperature": ["nan", "-1", "inf", "warm"],
    "--top_p": ["nan", "0", "1.5", "-0.1", "all"],
    **dict.fromkeys(("--num_beams", "--max_new_tokens", "--batch-size", "--num-chunks"), COUNTS),
    "--chunk-idx": ["-1"],
}
RUN = {**dict.fromkeys(("--max-new-tokens", "--batch-size", "--limit"), COUNTS), "--num-workers": ["-1"]}
CASES = [
    *((model_vqa_loader.parse_arguments, [], flag, value) for flag, values in LOADER.items() for value in values),
    *((run.parse_arguments, ["textvqa"], flag, value) for flag, values in RUN.items() for value in values),
    *((command.parse_arguments, [], "--temperature", value) for command in (cli, demo) for value in ("nan", "-1")),
    *((subset.parse_arguments, ["in.json", "out.json"], "--fraction", value) for value in ("0", "2", "nan", "half")),
    *((bench.parse_arguments, [], "--patience", value) for value in ("nan", "inf", "-1", "long")),
]


@pytest.mark.parametrize(("parse", "words", "flag", "value"), CASES)
def test_a_number_out_of_range_is_refused_by_name(parse, words, flag, value, capsys):
    with pytest.raises(SystemExit) as refused:
        parse([*words, flag, value])
    assert refused.value.code == 2
    assert f"argument {flag}: {value}: must be a" in capsys.readouterr().err


def test_the_ends_of_the_ranges_are_possible():
    ends = {"--temperature": "0", "--top_p": "1", "--num_beams": "1", "--chunk-idx": "0"}
    args = model_vqa_loader.parse_arguments([word for option in ends.items() for word in option])
    assert (args.temperature, args.top_p, args.num_beams, args.chunk_idx) == (0, 1, 1, 0)
