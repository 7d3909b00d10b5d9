import pytest

from llava.eval import model_vqa_loader, run


@pytest.fixture
def command(checkpoint, benchmark):
    flags = ["--question-file", str(benchmark.question_file), "--image-folder", str(benchmark.images)]
    return [
        "--model-path",
        checkpoint,
        *flags,
        "--temperature",
        "0",
        "--conv-mode",
        "vicuna_v1",
        "--max_new_tokens",
        "4",
    ]


def test_defaults_are_upstreams_but_for_the_template():
    args = vars(model_vqa_loader.parse_arguments([]))
    assert (
        args.items()
        >= {
            "model_path": "facebook/opt-350m",
            "model_base": None,
            "image_folder": "",
            "question_file": "tables/question.jsonl",
            "answers_file": "answer.jsonl",
            "conv_mode": None,  # the checkpoint's own
            "num_chunks": 1,
            "chunk_idx": 0,
            "temperature": 0.2,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": 128,
        }.items()
    )


def test_chunks_put_together_are_the_whole(command, checkpoint, benchmark, tmp_path, read_rows):
    whole = tmp_path / "whole.jsonl"
    assert run.main(["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(whole)]) == 0
    rows = []
    for chunk in range(5):  # 3 + 3 + 3 + 3 + 0: upstream rounds up, so that the last may stay empty
        file = tmp_path / f"5_{chunk}.jsonl"
        chunked = ["--num-chunks", "5", "--chunk-idx", str(chunk), "--answers-file", str(file)]
        assert model_vqa_loader.main([*command, *chunked]) == 0
        rows += read_rows(file)
    fields = ("question_id", "prompt", "text", "model_id", "metadata")
    assert [[row[field] for field in fields] for row in rows] == [
        [row[field] for field in fields] for row in read_rows(whole)
    ]


def test_a_chunk_that_is_not_there(command, tmp_path, capsys):
    chunked = ["--num-chunks", "2", "--chunk-idx", "2", "--answers-file", str(tmp_path / "a.jsonl")]
    assert model_vqa_loader.main([*command, *chunked]) == 2
    assert "no chunk 2" in capsys.readouterr().err


def test_bad_images(command, benchmark, tmp_path, capsys):
    command = [*command, "--answers-file", str(tmp_path / "a.jsonl")]
    (benchmark.images / "image0.jpg").unlink()
    assert model_vqa_loader.main(command) == 2
    assert f"the first of them image0.jpg ({benchmark.question_file}, line 1)" in capsys.readouterr().err
    (benchmark.images / "image0.jpg").write_text("not an image")
    assert model_vqa_loader.main(command) == 1
    said = capsys.readouterr().err
    assert "9 of 12 answers" in said
    assert "line 3, not answered" in said
    assert model_vqa_loader.main([*command, "--skip-bad"]) == 0
