"""Commands for jobs that make or check a model: the request that each makes of its options."""

from pathlib import Path

import pytest
from graftwerk import Client, local_import

from tests.client_service import Run, Service


def test_import_takes_a_path_of_the_volume(service: Service, run: Run) -> None:
    assert run("import", "incoming/llama", "--target", "llama", "--sha256", "7B/a=b.pth=ff").exit_code == 0
    assert service.body == {
        "kind": "import",
        "source": {"path": "incoming/llama"},
        "target": "llama",
        "sha256": {"7B/a=b.pth": "ff"},
    }


@pytest.mark.parametrize("arguments", [["incoming/x.ZIP"], ["incoming/x.bin", "--zip"]])
def test_import_knows_a_zip_by_its_ending_or_by_the_option(
    service: Service, run: Run, arguments: list[str]
) -> None:
    run("import", *arguments, "-t", "x")
    assert service.body["source"] == {"zip": arguments[0]}


@pytest.mark.parametrize(
    ("arguments", "source", "target"),
    [
        (["hub:org/Qwen2.5-0.5B"], {"hub": "org/Qwen2.5-0.5B"}, "Qwen2.5-0.5B"),
        (["hub:org/name@refs/pr/1", "-t", "x"], {"hub": "org/name", "revision": "refs/pr/1"}, "x"),
        (["hub:o/n", "--files", "*.gguf", "--files", "R*"], {"hub": "o/n", "files": ["*.gguf", "R*"]}, "n"),
        (["incoming/my-adapter.zip"], {"zip": "incoming/my-adapter.zip"}, "my-adapter"),
        (["incoming/Qwen2.5-0.5B/"], {"path": "incoming/Qwen2.5-0.5B/"}, "Qwen2.5-0.5B"),
        (["incoming/some.GGUF"], {"path": "incoming/some.GGUF"}, "some"),
    ],
)
def test_import_from_the_hub_and_the_target_by_default(
    service: Service, run: Run, arguments: list[str], source: dict[str, object], target: str
) -> None:
    assert run("import", *arguments).exit_code == 0
    assert service.body == {"kind": "import", "source": source, "target": target}


def test_files_are_chosen_on_the_hub_only(service: Service, run: Run) -> None:
    result = run("import", "incoming/x", "--files", "*.gguf")
    assert result.exit_code == 2
    assert "incoming/x is not there" in result.stderr


@pytest.mark.parametrize("source", ["hub:name", "hub:org/", "hub:org/name/file", "hub:@main"])
def test_an_id_of_the_hub_has_two_parts(service: Service, run: Run, source: str) -> None:
    result = run("import", source, "-t", "x")
    assert result.exit_code == 2
    assert f"{source} does not name a repository of the Hub" in result.stderr
    assert service.seen == []


@pytest.mark.parametrize("command", ["import", "push"])
def test_a_local_source_that_is_not_there_is_reported_without_a_request(
    service: Service, run: Run, command: str, tmp_path: Path
) -> None:
    result = run(command, str(tmp_path / "absent"))
    assert result.exit_code == 2
    assert "absent" in result.stderr
    assert service.seen == []


@pytest.mark.parametrize("command", ["import", "push"])
def test_nothing_is_uploaded_under_a_name_that_a_model_has(
    service: Service, run: Run, command: str, tmp_path: Path
) -> None:
    (tmp_path / "ab.zip").write_bytes(b"x")
    result = run(command, str(tmp_path / "ab.zip"))
    assert result.exit_code == 2
    assert "'ab' exists already" in result.stderr
    assert [request.method for request in service.seen] == ["GET"]


@pytest.mark.parametrize(("method", "arguments"), [("upload", ("push", "new.zip")), ("pull", ("pull", "ab"))])
def test_a_transfer_that_is_stopped_says_that_it_can_continue(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, arguments: tuple[str, str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.zip").write_bytes(b"x")
    monkeypatch.setattr(Client, method, stop)
    monkeypatch.setattr(local_import, "require_free", lambda *_: None)
    result = run(*arguments)
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr


def test_a_local_source_has_no_dry_run(service: Service, run: Run, tmp_path: Path) -> None:
    (tmp_path / "ab.zip").write_bytes(b"x")
    assert run("push", str(tmp_path / "ab.zip"), "--dry-run").exit_code == 2
    assert service.seen == []


@pytest.mark.parametrize(("options", "more"), [([], {}), (["--public"], {"private": False})])
def test_an_upload_to_the_hub_is_private_unless_it_is_public(
    service: Service, run: Run, options: list[str], more: dict[str, object]
) -> None:
    assert run("publish-to-hub", "merged", "org/name", *options).exit_code == 0
    assert service.body == {"kind": "publish-to-hub", "model": "merged", "repository": "org/name", **more}


def test_convert_sends_only_what_was_given(service: Service, run: Run) -> None:
    run("convert", "a", "b")
    assert service.body == {"kind": "convert", "source": "a", "target": "b"}


def test_convert_sends_its_options(service: Service, run: Run) -> None:
    options = [
        "--output-format",
        "meta",
        "--dtype",
        "float16",
        "--max-shard-size",
        "2GB",
        "--ranks",
        "2",
        "--instruct",
    ]
    run("convert", "a", "b", *options)
    rest = {
        "output_format": "meta",
        "dtype": "float16",
        "max_shard_size": "2GB",
        "ranks": 2,
        "instruct": True,
    }
    assert service.body == {"kind": "convert", "source": "a", "target": "b"} | rest


def test_merge_keeps_the_order_of_adapters_in_both_notations(service: Service, run: Run) -> None:
    run(
        "merge",
        "base",
        "--adapters",
        "a, b@0.5",
        "-a",
        "c",
        "--target",
        "abc",
        "--rounding",
        "once",
        "--no-verify",
    )
    assert service.body == {
        "kind": "merge",
        "base": "base",
        "adapters": ["a", {"name": "b", "scale": 0.5}, "c"],
        "target": "abc",
        "rounding": "once",
        "verify": False,
    }


@pytest.mark.parametrize(("options", "sent"), [([], {}), (["--pad-token", "[PAD]"], {"pad_token": "[PAD]"})])
def test_extend_tokenizer_sends_the_padding_token_if_given(
    service: Service, run: Run, options: list[str], sent: dict[str, str]
) -> None:
    run("extend-tokenizer", "llama", "zh", "-t", "x", *options)
    names = {"kind": "extend-tokenizer", "base": "llama", "addition": "zh", "target": "x"}
    assert service.body == names | sent


def test_a_scale_that_is_not_a_number_is_a_usage_error(service: Service, run: Run) -> None:
    result = run("merge", "base", "-a", "b@half", "-t", "x")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: The scale in 'b@half' is not a number.",
        "       Write it as b@0.5.",
    ]
    assert service.seen == []


def test_verify_sends_the_base_and_the_adapters(service: Service, run: Run) -> None:
    run("verify", "ab", "--base", "llama", "-a", "a,b@0.5")
    rest = {"base": "llama", "adapters": ["a", {"name": "b", "scale": 0.5}]}
    assert service.body == {"kind": "verify", "model": "ab"} | rest


def test_extract_sends_the_rank(service: Service, run: Run) -> None:
    assert run("extract", "llama", "vicuna", "--rank", "8", "-t", "lora").exit_code == 0
    assert service.body == {
        "kind": "extract",
        "base": "llama",
        "model": "vicuna",
        "rank": 8,
        "target": "lora",
    }


def test_combine_sends_scales_in_both_notations_and_only_what_was_given(service: Service, run: Run) -> None:
    assert run("combine", "a", "b@0.5", "c:-1", "-t", "abc").exit_code == 0
    names = {
        "kind": "combine",
        "adapters": ["a", {"name": "b", "scale": 0.5}, {"name": "c", "scale": -1.0}],
        "target": "abc",
    }
    assert service.body == names


def test_combine_sends_the_options_of_its_method(service: Service, run: Run) -> None:
    run("combine", "a", "b", "-t", "ab", "--method", "dare", "--density", "0.3", "--seed", "7", "--rank", "9")
    options = {"method": "dare", "density": 0.3, "seed": 7, "rank": 9}
    assert service.body == {"kind": "combine", "adapters": ["a", "b"], "target": "ab"} | options
