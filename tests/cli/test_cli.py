import argparse
import copy
import errno
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import vitlens.bundle
import vitlens.models.families
from tests.builders import KINDS, reference, sae_of_kind
from vitlens import Circuit, Curves
from vitlens.circuits.prune import DEFAULT_FLOOR, Select
from vitlens.cli import main, options, parser
from vitlens.cli import saes as saes_command
from vitlens.cli.report import indented
from vitlens.cli.saes import held_out_and_rest
from vitlens.errors import VitlensError
from vitlens.images import Transform
from vitlens.io import check_folder
from vitlens.lens import About, Lens, Sample
from vitlens.method.importance import Engine, ErrorGradients
from vitlens.method.libragrad import Gradient
from vitlens.method.patching import EdgeKind
from vitlens.method.replacement import ErrorNodes
from vitlens.saes import load_saes, save_saes
from vitlens.saes.data import sae_residuals
from vitlens.training.losses import chain_losses

CLASSES = ("bird", "insect", "mammal", "flower", "fruit", "vehicle", "coin")


@pytest.fixture
def tiny():
    """The reference data's model, SAEs and baselines, in float32; a copy, for tests change it."""
    case = reference("vit_cls", torch.float32)
    return copy.deepcopy((case.model, case.saes, case.baselines))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two folders of noise, the first named like a class."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, count in (("bird", 2), ("unknown", 1)):
        (folder / name).mkdir()
        for i in range(count):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def everyday(tiny, photos, monkeypatch):
    """Stands in for the bundle, so that these tests are quick and need no weights."""
    model, saes, baselines = tiny
    lens = Lens(
        model,
        saes,
        baselines=baselines,
        class_names=CLASSES,
        transform=Transform(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        about=About(
            name="everyday",
            samples=(
                Sample(photos / "bird" / "0.png", "", "noise, CC0"),
                Sample(photos / "bird" / "1.png", "", "more noise, CC0"),
            ),
            card="# everyday\n\nA card.",
        ),
    )
    monkeypatch.setattr(vitlens.bundle, "bundles", lambda: ("everyday",))
    monkeypatch.setattr(vitlens.bundle, "load", lambda name, **_: lens)
    return lens


@pytest.fixture
def tiny_timm(tiny, monkeypatch):
    """Makes every name of a timm model give the tiny one."""

    def create(name, *, pretrained=True, **_):
        return tiny[0]

    monkeypatch.setattr(vitlens.bundle, "create", create)
    monkeypatch.setattr(vitlens.models.families, "create", create)


def fails(arguments, capsys):
    assert main([str(argument) for argument in arguments]) == 2
    # A progress bar may have been drawn and wiped before.
    text = capsys.readouterr().err.rpartition("\r")[2]
    assert text.startswith("vitlens: ") and "Traceback" not in text
    return text


def test_demo_writes_figures_and_a_circuit_and_prints_times(everyday, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    circuit = Circuit.load(out / "circuit.safetensors")
    assert circuit.nodes and circuit.edges and circuit.model == everyday.fingerprint
    assert sorted(path.name for path in out.iterdir()) == [
        "circuit.png",
        "circuit.safetensors",
        "circuit.svg",
        "curves.png",
    ]
    name, probability = everyday.predict(everyday.samples[0].path)[0]
    assert f"Prediction: {name} {probability:.1%}" in printed
    for expected in ("noise, CC0", "strongest edge", "insertion", "cla", "random", "total"):
        assert expected in printed
    assert str(circuit).splitlines()[-1].strip() in printed
    assert str(out / "circuit.png") in printed
    assert "On the other samples" not in printed  # theirs have no labels here


def test_demo_takes_another_sample_and_suggests_near_matches(everyday, tmp_path, capsys):
    assert main(["demo", "--sample", "1.png", "--out", str(tmp_path)]) == 0
    assert "more noise" in capsys.readouterr().out
    assert "Samples: 0, 1" in fails(["demo", "--sample", "x", "--out", tmp_path], capsys)


def test_explain_takes_a_target_and_a_pruning_rule(everyday, photos, tmp_path, capsys):
    image = photos / "bird" / "0.png"
    command = ["explain", image, "--target", "Mammal", "--nodes-per-layer", "2", "--out", tmp_path]
    command += ["--select", "walk"]
    assert main([*map(str, command), "--error-gradients", "through", "--engine", "jvp"]) == 0
    circuit = Circuit.load(tmp_path / "circuit.safetensors")
    expected = everyday.circuit(
        image,
        target=2,
        nodes_per_layer=2,
        error_gradients="through",
        engine="jvp",
        gradient="libragrad",
        select="walk",
    )
    assert circuit == expected
    assert "mammal = " in capsys.readouterr().out


def test_explain_selects_nodes_that_carry_the_answer_and_says_how_much(
    everyday, photos, tmp_path, capsys
):
    image = photos / "bird" / "0.png"
    command = ["explain", image, "--nodes", "12", "--floor", "3", "--out", tmp_path]
    options_given = ["--error-nodes", "baseline", "--edges", "gradient"]
    assert main([*map(str, command), *options_given]) == 0
    circuit = Circuit.load(tmp_path / "circuit.safetensors")
    expected = everyday.circuit(image, nodes=12, floor=3, error_nodes="baseline", edges="gradient")
    assert circuit == expected and circuit.carried is not None
    assert circuit.carried.error_nodes == "baseline"
    assert str(circuit.carried).splitlines()[0] in capsys.readouterr().out


def test_demo_takes_the_options_of_circuits_and_says_how_specific_the_circuit_is(
    everyday, tmp_path, capsys
):
    first, second = everyday.samples
    predicted = everyday.predict(first.path)[0][0]
    everyday.about = replace(
        everyday.about,
        samples=(first, *(replace(second, label=name) for name in (predicted, "coin", ""))),
    )
    command = ["demo", "--select", "walk", "--nodes-per-layer", "3", "--out", str(tmp_path)]
    assert main([*command, "--error-nodes", "baseline"]) == 0
    circuit = Circuit.load(tmp_path / "circuit.safetensors")
    assert circuit == everyday.circuit(
        first.path, select="walk", nodes_per_layer=3, error_nodes="baseline"
    )
    expected = everyday.specificity(
        circuit, first.path, [second.path], labels=["coin"], error_nodes="baseline"
    )
    printed = capsys.readouterr().out
    assert f"On the other samples:\n{indented(str(expected))}" in printed


def test_explain_says_how_specific_the_circuit_is(everyday, photos, tmp_path, capsys):
    image, unlike = photos / "bird" / "0.png", photos / "unknown"
    predicted = everyday.predict(unlike / "0.png")[0][0]
    target = next(name for name in CLASSES if name != predicted)
    command = ["explain", str(image), "--target", target, "--out", str(tmp_path)]
    assert main([*command, "--others", str(unlike)]) == 0
    circuit = Circuit.load(tmp_path / "circuit.safetensors")
    expected = everyday.specificity(circuit, image, [unlike / "0.png"])
    assert f"Specificity:\n{indented(str(expected))}" in capsys.readouterr().out


def test_explain_refuses_other_images_that_are_none(everyday, photos, tmp_path, capsys):
    image = photos / "bird" / "0.png"
    command = ["explain", image, "--out", tmp_path, "--others"]
    assert "no image of another class" in fails([*command, image], capsys)
    assert "9.png" in fails([*command, photos / "9.png"], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}/bird/0.png", "--target", "mamal"], "mammal"),
        (["{photos}/bird/0.png", "--target", "99"], "classes 0 to 6"),
        (["{photos}/bird/9.png"], "9.png"),
        (["{photos}/notes.txt"], "not an image"),
        (["{photos}/bird/0.png", "--share", "7"], "share"),
        (["{photos}/bird/0.png", "--class-names", "x"], "has its own class names"),
        (["{photos}/bird/0.png", "--target", "0", "--out", "{photos}/notes.txt"], "notes.txt"),
        (["{photos}/bird/0.png", "--out", "{photos}/notes.txt/x"], "notes.txt is a file"),
    ],
)
def test_bad_input_gives_one_clear_line_and_leaves_no_files(
    everyday, photos, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    text = fails(["explain", *(word.format(photos=photos) for word in arguments)], capsys)
    assert message in text and len(text.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["explain", "{photos}/bird/0.png"],
        ["faithfulness"],
        ["atlas", "{photos}"],
        ["train-saes", "{photos}", "--model", "everyday"],
        ["tune-saes", "{photos}", "--model", "everyday"],
    ],
)
def test_a_file_at_the_output_folder_is_refused_before_anything_is_loaded(
    arguments, photos, monkeypatch, capsys
):
    monkeypatch.setattr(vitlens.bundle, "load", lambda *_, **__: pytest.fail("loaded"))
    out = photos / "notes.txt"
    command = [word.format(photos=photos) for word in arguments]
    assert "notes.txt is a file" in fails([*command, "--out", out], capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    for mode in (0o500, 0o000):
        tmp_path.chmod(mode)
        with pytest.raises(VitlensError, match="may not write to"):
            check_folder(tmp_path / "a" / "b")
    tmp_path.chmod(0o700)


def test_explain_works_for_a_timm_model_with_saes_names_and_baselines(
    tiny, tiny_timm, photos, tmp_path, capsys
):
    _, saes, baselines = tiny
    save_saes(saes, tmp_path / "saes")
    baselines.save(tmp_path / "baselines.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8-sig")
    image = photos / "unknown" / "0.png"
    command = ["explain", image, "--model", "vit_tiny_patch16_224", "--saes", tmp_path / "saes"]
    command += ["--class-names", tmp_path / "names.txt", "--dtype", "float64", "--device", "cpu"]
    for given in (tmp_path / "baselines.safetensors", photos):
        more = ["--baselines", given, "--out", tmp_path / "out", "--target", "coin"]
        assert main([str(word) for word in (*command, *more)]) == 0
        assert "coin = " in capsys.readouterr().out
        assert Circuit.load(tmp_path / "out" / "circuit.safetensors").target == "coin"
        tiny[0].float()


@pytest.mark.parametrize("kind", KINDS)
def test_saes_of_every_kind_at_some_layers(kind, tiny_timm, photos, tmp_path, capsys):
    sae = sae_of_kind(kind, d_model=32, n_features=24)
    save_saes({0: sae, 2: sae}, tmp_path / "saes")
    model = ["--model", "tiny", "--saes", str(tmp_path / "saes")]
    assert main(["info", *model]) == 0
    assert f" {sae.kind} " in capsys.readouterr().out
    image = str(photos / "bird" / "0.png")
    for baseline in ("median", "mean", "reference"):
        out = tmp_path / baseline
        fitted = ["--baselines", str(photos), "--baseline-kind", baseline, "--out", str(out)]
        assert main(["explain", image, *model, *fitted]) == 0
        circuit = Circuit.load(out / "circuit.safetensors")
        assert circuit.layers == (0, 2) and circuit.settings["baselines"] == baseline


def test_faithfulness_prints_cost_and_table_and_keeps_correctly_classified_images(
    everyday, photos, tmp_path, capsys
):
    right = [everyday.predict(p)[0][0] == "bird" for p in sorted((photos / "bird").iterdir())]
    command = ["faithfulness", photos / "bird", "--methods", "rrm, random", "--out", tmp_path]
    if not any(right):
        assert "None of the 2 images" in fails(command, capsys)
    command[1] = photos
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    curves = Curves.load(tmp_path / "curves.safetensors")
    assert curves.methods == ("rrm", "random") and curves.n_given == 3
    assert "3 images: about" in printed and str(curves.table()) in printed
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_faithfulness_takes_the_samples_and_stops_at_ctrl_c(
    everyday, tmp_path, monkeypatch, capsys
):
    seen = {}

    def stopped(images, **settings):
        seen.update(settings, images=images)
        raise KeyboardInterrupt

    monkeypatch.setattr(everyday, "faithfulness", stopped)
    assert (
        main(["faithfulness", "--limit", "1", "--out", str(tmp_path), "--error-nodes", "free"])
        == 130
    )
    assert "The same command continues" in capsys.readouterr().err
    assert len(seen["images"]) == 1 and seen["error_nodes"] == "free" and seen["labels"] is None


def test_faithfulness_refuses_unknown_methods_before_anything_is_loaded(capsys):
    assert "'cla'" in fails(["faithfulness", "--methods", "claa"], capsys)


def test_train_saes_reports_and_its_saes_explain(tiny_timm, photos, tmp_path, capsys):
    out = tmp_path / "saes"
    command = [
        "train-saes",
        photos,
        "--model",
        "tiny",
        "--out",
        out,
        "--k",
        "4",
        "--size-ratio",
        "1.5",
    ]
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    saes = load_saes(out)
    assert [(sae.n_features, sae.k) for sae in saes.values()] == [(48, 4)] * 3
    assert "3 SAEs on 3 images: 51 tokens" in printed and "explained variance" in printed
    assert f"--saes {out}" in printed
    explain = ["explain", photos / "bird" / "0.png", "--model", "tiny", "--saes", out]
    assert main([str(word) for word in (*explain, "--out", tmp_path / "why")]) == 0


def test_train_saes_measures_images_kept_out_of_training(tiny_timm, photos, tmp_path, capsys):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(20):
        (many / f"{i}.png").write_bytes((photos / "bird" / "0.png").read_bytes())
    command = ["train-saes", many, "--model", "tiny", "--out", tmp_path / "saes", "--k", "4"]
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    assert "3 SAEs on 18 images" in printed and "On 2 images kept out of training" in printed
    assert "all layers replaced" in printed


def test_an_unreadable_image_does_not_end_training(tiny_timm, photos, tmp_path, capsys):
    some = tmp_path / "some"
    some.mkdir()
    for name in ("a", "b"):
        (some / f"{name}.png").write_bytes((photos / "bird" / "0.png").read_bytes())
    (some / "c.png").write_bytes((photos / "bird" / "0.png").read_bytes()[:200])
    (some / "d.jpg").write_text("no image")
    command = ["train-saes", some, "--model", "tiny", "--out", tmp_path / "saes", "--k", "4"]
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    assert "3 SAEs on 4 images" in printed and "2 images could not be read" in printed
    assert "c.png cannot be read" in printed and "d.jpg is not an image" in printed
    for name in ("a.png", "b.png"):
        (some / name).unlink()
    command[5] = tmp_path / "others"
    assert "No image could be read" in fails(command, capsys)


def test_unreadable_images_are_left_out_of_the_report(tiny_timm, photos, tmp_path, capsys):
    some = tmp_path / "some"
    some.mkdir()
    for number in range(24):
        (some / f"{number:02}.png").write_bytes((photos / "bird" / "0.png").read_bytes())
    command = ["train-saes", some, "--model", "tiny", "--k", "4", "--out"]
    command = [str(word) for word in command]
    assert main([*command, str(tmp_path / "first")]) == 0
    assert "On 2 images kept out of training:" in capsys.readouterr().out
    held_out, _ = held_out_and_rest(
        argparse.Namespace(images=some, limit=None, seed=0, held_out=64)
    )
    held_out[0].write_text("no image")
    assert main([*command, str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "1 image kept out of training could not be read:" in printed
    assert "On 1 image kept out of training:" in printed
    held_out[1].write_text("no image")
    assert main([*command, str(tmp_path / "third")]) == 0
    printed = capsys.readouterr().out
    assert "kept out of training:\nlayer" not in printed and "SAEs are in" in printed


def test_train_saes_continues_after_ctrl_c(tiny_timm, photos, tmp_path, monkeypatch, capsys):
    command = ["train-saes", photos, "--model", "tiny", "--out", tmp_path / "saes", "--k", "4"]
    command = [str(word) for word in (*command, "--epochs", "3")]
    calls = []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 4:  # two belong to the estimate
            raise KeyboardInterrupt
        return sae_residuals(*arguments, **settings)

    monkeypatch.setattr("vitlens.training.run.sae_residuals", interrupted)
    assert main(command) == 130
    text = capsys.readouterr().err
    assert "saes.partial is kept; the same command continues" in text
    assert main(command) == 0
    assert len(load_saes(tmp_path / "saes")) == 3
    assert not (tmp_path / "saes.partial").exists()


def test_tune_saes_compares_before_and_after(tiny, tiny_timm, photos, tmp_path, capsys):
    save_saes(tiny[1], tmp_path / "saes")
    many = tmp_path / "many"
    many.mkdir()
    for i in range(20):
        (many / f"{i}.png").write_bytes((photos / "bird" / f"{i % 2}.png").read_bytes())
    out = tmp_path / "tuned"
    command = ["tune-saes", many, "--model", "tiny", "--saes", tmp_path / "saes", "--out", out]
    command = [str(word) for word in (*command, "--batch-size", 4, "--chain-weight", 1)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 SAEs on 18 images: 306 tokens, about" in printed and "GiB of memory" in printed
    assert "in chain" in printed and printed.count("all layers replaced") == 2
    assert "2 images kept out of tuning, before" in printed and f"--saes {out}" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["metadata"]["tuning"]["settings"]["chain_weight"] == 1
    assert len(load_saes(out)) == 3


def test_tune_saes_continues_after_ctrl_c(everyday, photos, tmp_path, monkeypatch, capsys):
    command = ["tune-saes", photos, "--model", "everyday", "--out", tmp_path / "tuned"]
    command = [str(word) for word in (*command, "--batch-size", "1")]
    calls = []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 5:  # two belong to the estimate
            raise KeyboardInterrupt
        return chain_losses(*arguments, **settings)

    monkeypatch.setattr("vitlens.training.run.chain_losses", interrupted)
    assert main(command) == 130
    assert "tuned.partial is kept; the same command" in capsys.readouterr().err
    assert main(command) == 0
    assert len(load_saes(tmp_path / "tuned")) == 3


def test_an_empty_folder_is_refused(tmp_path, capsys):
    text = fails(["train-saes", tmp_path, "--model", "x", "--out", tmp_path / "out"], capsys)
    assert "contains no image" in text
    assert "There is no file or folder" in fails(["faithfulness", tmp_path / "no"], capsys)


def test_an_unknown_model_is_refused_with_suggestions(photos, capsys):
    image = photos / "bird" / "0.png"
    text = fails(["explain", image, "--model", "vit_base_patch16_244", "--saes", "x"], capsys)
    assert "vit_base_patch16_224" in text
    assert "'everyday'" in fails(["explain", image, "--model", "Everday"], capsys)
    assert "No SAEs are known" in fails(["info", "--model", "local-dir:here"], capsys)
    text = fails(["info", "--model", "local-dir:here", "--saes", "x"], capsys)
    assert "config.json" in text and "network" not in text


@pytest.mark.parametrize("config", ["{}", "{", "[]", '{"architecture": "vit", "model_args": 3}'])
def test_a_folder_without_a_model_is_refused(tmp_path, capsys, config):
    (tmp_path / "config.json").write_text(config)
    text = fails(["info", "--model", f"local-dir:{tmp_path}", "--saes", "x"], capsys)
    assert "could not be loaded" in text and "config.json and weights" in text


def test_info_prints_model_saes_and_samples(everyday, capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for expected in ("4 blocks", "17 tokens: CLS + 4 × 4", "bird, insect", "more noise, CC0"):
        assert expected in printed
    assert printed.count("features") == 1 and everyday.fingerprint in printed
    assert main(["info", "--card"]) == 0
    assert "A card." in capsys.readouterr().out


def test_info_prints_the_measured_quality_of_saes(everyday, capsys):
    layer = {"explained_variance": 0.912, "dead_fraction": 0.01, "accuracy_kept": 0.8}
    everyday.about.figures["saes"] = {
        "layers": [{"layer": i, **layer} for i in range(3)],
        "accuracy_all": 0.7,
        "accuracy": 0.9,
        "fingerprint": everyday.fingerprint,
    }
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("0.912") == 3 and "no error nodes: 70.0% (original model: 90.0%)" in printed
    )


def commands():
    """The parsers of all commands, by name."""
    return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("command", [[], *([name] for name in commands())])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args([*command, "--help"])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0 and "examples:\n  vitlens " in printed


def test_examples_in_the_help_are_valid_commands(capsys):
    texts = [each.format_help() for each in (parser(), *commands().values())]
    lines = {line for text in texts for line in text.splitlines() if line.startswith("  vitlens ")}
    assert len(lines) > 8
    for line in lines:
        parser().parse_args(line.split()[1:])


def test_choices_are_those_of_the_library():
    assert get_args(Engine) == options.ENGINES
    assert get_args(Gradient) == options.GRADIENTS
    assert get_args(ErrorGradients) == options.ERROR_GRADIENTS
    assert get_args(ErrorNodes) == options.ERROR_NODES
    assert set(get_args(Select)) == set(options.SELECT)
    assert set(get_args(EdgeKind)) == set(options.EDGES)
    assert options.DEFAULT_FLOOR == DEFAULT_FLOOR


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain"],
        ["fly"],
        [],
        ["explain", "x", "--top-edges", "0"],
        ["explain", "x", "--top-edges", "few"],
        ["train-saes", "x", "--model", "x", "--out", "x", "--size-ratio", "nan"],
        ["train-saes", "x", "--model", "x", "--out", "x", "--learning-rate", "-1"],
    ],
)
def test_wrong_usage_is_reported_by_argparse(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: vitlens" in capsys.readouterr().err


def test_version_and_help_do_not_load_torch():
    script = (
        "import sys; from vitlens.cli import main\n"
        "try: main(['explain', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 0 and b"--engine" in done.stdout


def test_a_closed_pipe_is_no_crash(everyday, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("vitlens.cli.info._versions", gone)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["info"]) == 2


def test_a_full_disk_is_reported_in_one_line(everyday, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitlens.cli.info._versions", full)
    assert "No space left" in fails(["info"], capfd)


def test_a_system_error_loses_nothing_that_was_printed(everyday, monkeypatch, tmp_path):
    def print_then_fail(_):
        sys.stdout.write("printed before\n")
        raise FileNotFoundError(errno.ENOENT, "No such file")

    monkeypatch.setattr("vitlens.cli.info.run", print_then_fail)
    for out in (io.StringIO(), (tmp_path / "out.txt").open("w+")):
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["info"]) == 2
        sys.stdout.write("and after\n")
        out.seek(0)
        assert out.read() == "printed before\nand after\n"


def test_output_in_ascii_is_no_crash(everyday, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["info"]) == 0
    assert b"4 ? 4 patches" in written.getvalue()
    with pytest.raises(SystemExit):
        main(["faithfulness", "--help"])
    sys.stdout.flush()
    assert b"A,B,?" in written.getvalue()


def test_help_fits_a_narrow_terminal_and_keeps_examples(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main(["train-saes", "--help"])
    text, _, examples = capsys.readouterr().out.partition("examples:\n")
    text = text[text.index("Train a sparse") : text.index("positional")]
    assert max(len(line) for line in text.splitlines()) <= 60
    assert examples.splitlines() == saes_command._TRAIN_EXAMPLES.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_reported(everyday, capsys):
    assert "No CUDA device" in fails(["info", "--device", "cuda"], capsys)


def test_commands_in_the_readme_are_valid():
    readme = Path(__file__).parents[2] / "README.md"
    text = readme.read_text(encoding="utf-8")
    commands = re.findall(
        r"(?:`|^\$ )vitlens ((?:demo|explain|faithfulness|train-saes|info)[^`\n]*)", text, re.M
    )
    assert len(commands) > 5
    for command in commands:
        parser().parse_args(command.split())
