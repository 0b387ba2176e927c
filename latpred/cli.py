"""The command line: parses, calls, prints. Exit codes: 0 fine, 2 wrong usage or input, 1 anything else."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from latpred.arguments import build_parser
from latpred.errors import InputError, LatpredError, MeasurementError

if TYPE_CHECKING:
    from latpred.collect.rounds import Step
    from latpred.decide.plan import Plan
    from latpred.predictor import Prediction

__all__ = ["main"]


def model_files(names: Sequence[str]) -> list[Path]:
    """The files named, and every .onnx file below the folders named, sorted."""
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(path.rglob("*.onnx"))
            if not found:
                raise InputError(f"expected a folder with .onnx files, {name} has none; name a file or another folder")
            files += found
        else:
            files.append(path)
    return files


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"latpred: {' '.join(text.split())}", file=sys.stderr)


def exit_code(error: LatpredError) -> int:
    """2 where the caller can mend it, else 1."""
    return 2 if isinstance(error, InputError) else 1


def run_predict(args: argparse.Namespace) -> int:
    """``latpred predict``."""
    from latpred import predictor

    files = model_files(args.models)
    serving = predictor.load(args.device, threads=args.threads, home=args.home)
    answers: list[Prediction] = []
    worst = 0
    for path in files:
        try:
            answers.append(
                serving.predict(
                    path,
                    dims=dict(args.dim),
                    shapes=dict(args.shape),
                    interval=args.interval,
                    strict=args.strict,
                )
            )
        except LatpredError as error:
            complain(str(error) if len(files) == 1 else f"{path}: {error}")
            worst = max(worst, exit_code(error))
            continue
        if not args.json and not args.csv:
            from latpred.report import tables

            print(("\n" if len(answers) > 1 else "") + tables.prediction_table(answers[-1], args.top))
    if args.json:
        print(json.dumps([answer.to_dict() for answer in answers], indent=1))
    elif args.csv and answers:
        from latpred.predictor import to_csv

        print(to_csv(answers), end="")
    return worst


def run_validate(args: argparse.Namespace) -> int:
    """``latpred validate``."""
    from latpred import predictor, validation
    from latpred.collect import rounds
    from latpred.report.validation import validation_object, validation_text

    named = rounds.names_of(model_files(args.models))
    if args.save:
        rounds.check_target(args.save)
    families = validation.load_families(args.families) if args.families else {}
    kept = rounds.load(args.measured) if args.measured else None
    serving = predictor.load(args.device, threads=args.threads, home=args.home)
    dims, shapes = dict(args.dim), dict(args.shape)
    known, unknown = validation.predictable(named, serving, dims, shapes)
    for name, error in unknown.items():
        complain(str(error) if len(named) == 1 else f"{named[name]}: {error}")
    worst = max(map(exit_code, unknown.values()), default=0)
    if not known:
        return worst
    if kept:
        measured = rounds.select(kept, known, str(args.measured))
        if known.keys() - {network.name for network in kept.networks} - kept.failed.keys():
            worst = 2  # the file is another one than is meant, or a network: the caller can mend it
    else:
        plan = validation.plan_for(serving, args.threads, args.run_budget)
        measured = validation.measure(known, plan, args.repeat, dims, shapes, tell_step)
    if measured.interrupted and not measured.networks:
        complain("interrupted before any network was measured: nothing is kept, run it again")
        return max(worst, 1)
    if args.save:
        rounds.save(measured, args.save)
    try:
        found = validation.compare(measured, serving, families, dims, shapes)
    except MeasurementError as error:
        complain(str(error))
        return max(worst, exit_code(error))
    told = replace(found, failed={**{name: str(error) for name, error in unknown.items()}, **found.failed})
    print(json.dumps(validation_object(told), indent=1, allow_nan=False) if args.json else validation_text(told))
    unreached = [name for name, why in found.failed.items() if why == rounds.NOT_REACHED]
    for name, why in found.failed.items():
        if name not in unreached:
            complain(f"{name}: {why}")
    if measured.interrupted:
        left = f"; not reached: {', '.join(unreached)}" if unreached else ""
        complain(f"interrupted: what was measured until then is compared{left}")
    return max(worst, 1 if found.failed or measured.interrupted else 0)


def tell_step(step: Step) -> None:
    """One line a network and round on standard error."""
    said = "failed" if step.latency_s is None else f"{step.latency_s * 1e3:.3f} ms"
    complain(f"round {step.round}/{step.rounds}, {step.place}/{step.networks}: {step.name}, {said}")


def run_kernels(args: argparse.Namespace) -> int:
    """``latpred kernels``."""
    from latpred import graph, home
    from latpred.kernels.detect import detect
    from latpred.report import tables

    rules = home.rules_for(args.device, threads=args.threads, home=args.home)
    described, worst = [], 0
    files = model_files(args.models)
    for path in files:
        try:
            network = graph.read(path, dims=dict(args.dim), shapes=dict(args.shape))
        except LatpredError as error:
            complain(str(error) if len(files) == 1 else f"{path}: {error}")
            worst = max(worst, exit_code(error))
            continue
        detection = detect(network, rules)
        if args.explain is not None:
            text = tables.remarks_table(detection, args.explain)
            if not text:
                raise InputError(
                    f"expected the name of a node of {path}, got {args.explain!r}; "
                    "`latpred kernels --json` lists every kernel with its nodes"
                )
            print(text)
        elif args.json:
            described.append(
                {
                    "model": str(path),
                    "kernels": [{**kernel.to_dict(), "label": kernel.label} for kernel in detection.kernels],
                    "free": dict(detection.free),
                    "unsupported": list(detection.unsupported),
                    "notices": list(network.notices),
                }
            )
        else:
            if len(files) > 1:
                print(path)
            print(tables.kernels_table(detection.kernels, detection.free, detection.unsupported))
            for notice in network.notices:
                print(f"notice: {notice}")
    if args.json:
        print(json.dumps(described, indent=1))
    return worst


def plan_of(args: argparse.Namespace) -> Plan:
    """Decision points of the model named, or the choice among those named."""
    from latpred import predictor

    files = model_files(args.models)
    serving = predictor.load(args.device, threads=args.threads, home=args.home)
    models = files[0] if len(files) == 1 else files
    return serving.plan(models, dict(args.dim), dict(args.shape), args.gate, interval=args.interval)


def run_gates(args: argparse.Namespace) -> int:
    """``latpred gates``."""
    from latpred.report import decisions

    found = plan_of(args)
    print(json.dumps(found.to_dict(), indent=1) if args.json else decisions.gates_text(found))
    return 0


def run_decide(args: argparse.Namespace) -> int:
    """``latpred decide``."""
    from latpred.report import decisions

    utilities = decisions.load_utilities(args.utilities) if args.utilities else None
    found = plan_of(args)
    answer = decisions.answer(found, args.deadline, args.confidence, utilities)
    print(json.dumps(answer, indent=1) if args.json else decisions.decide_text(answer))
    return 0


def run_saliency(args: argparse.Namespace) -> int:
    """``latpred saliency``."""
    from latpred.hooks import pictures
    from latpred.hooks.saliency import GradCam
    from latpred.report.saliency import saliency_object, saliency_text

    target = pictures.checked_target(args.out)
    image = pictures.load_image(args.image)
    cam = GradCam(args.model, args.layer, args.score, dict(args.dim), dict(args.shape))
    pixels = pictures.prepared(image, cam.image, args.mean or pictures.IMAGENET_MEAN, args.std or pictures.IMAGENET_STD)
    found = cam.run({cam.image.name: pixels}, args.class_index)
    pictures.save_image(pictures.overlaid(image, found.map[0]), target)
    described = saliency_object(found, cam.layer.shape, target)
    print(json.dumps(described, indent=1) if args.json else saliency_text(described))
    return 0


def run_device(args: argparse.Namespace) -> int:
    """``latpred device``."""
    from latpred import device as devices
    from latpred import home
    from latpred.report import tables

    if args.name is None:
        print("\n".join(["local", *devices.presets()]))
        return 0
    if args.name == "local":
        from latpred.collect import roofline

        threads = args.threads or 1
        found = None if args.measure else home.measured_device("local", threads=threads, home=args.home)
        if found is None:
            complain(f"measuring this machine with {threads} thread(s)")
            found = roofline.measure_device("local", threads=threads)
            home.save_device(found, home=args.home)
    else:
        found = home.device(args.name, threads=args.threads, home=args.home)
    print(json.dumps(found.to_dict(), indent=1) if args.json else tables.device_table(found))
    return 0


def run_probe(args: argparse.Namespace) -> int:
    """``latpred probe``."""
    from latpred import home
    from latpred.collect.probe import probe

    book = probe(threads=args.threads or 1, provider=args.provider)
    target = Path(args.out) if args.out else home.save_rules(book, args.device, args.threads or 1, home=args.home)
    if args.out:
        target.write_text(book.dumps(), encoding="utf-8")
    for rule in book.rules.values():
        print(f"{'holds ' if rule.holds else 'absent'}  {rule.name}: {rule.observed}")
    print(f"written to {target}")
    return 0


def run_collect(args: argparse.Namespace) -> int:
    """``latpred collect``."""
    from latpred import home, pipeline
    from latpred.collect.campaign import preview
    from latpred.kernels.views import VIEWS_OF_KIND
    from latpred.report import tables
    from latpred.report.progress import CampaignDisplay

    threads = args.threads or 1
    unknown = sorted(set(args.kinds or ()) - set(VIEWS_OF_KIND))
    if unknown:
        known = ", ".join(sorted(VIEWS_OF_KIND))
        raise InputError(f"--kinds takes {known}; got {', '.join(unknown)}: choose among these")
    if args.dry_run:
        rules = home.rules_for(args.device, threads=threads, home=args.home)
        print(tables.preview_table(preview(rules, args.count, args.seed, args.kinds or ())))
        return 0
    order = pipeline.Order(
        args.device, threads, args.budget, args.kinds or (), args.provider, args.fresh, args.seed, args.home
    )
    with CampaignDisplay() as display:
        collected = pipeline.collect(order, display.progress, display.stage)
    print(tables.summary_table(collected.summary))
    if collected.report is None:
        complain(
            f"interrupted; {collected.folders.dataset} is whole: the same command goes on from here, "
            f"`latpred fit --device {args.device} --threads {threads}` fits what there is"
        )
        return 1
    print(tables.fit_table(collected.report))
    print(f"measurements: {collected.folders.dataset}")
    print(f"predictor:    {collected.folders.model}")
    print("next:         latpred predict MODEL.onnx")
    return 0


def run_fit(args: argparse.Namespace) -> int:
    """``latpred fit``."""
    from latpred import home
    from latpred.fit import fit
    from latpred.report import tables

    folders = home.folders(args.device, threads=args.threads or 1, home=args.home)
    report = fit(folders.dataset, folders.model, jobs=args.jobs)
    print(tables.fit_table(report))
    print(f"written to {folders.model}")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "predict": run_predict,
    "validate": run_validate,
    "kernels": run_kernels,
    "gates": run_gates,
    "decide": run_decide,
    "saliency": run_saliency,
    "device": run_device,
    "probe": run_probe,
    "collect": run_collect,
    "fit": run_fit,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every error is one line on standard error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(f"latpred {version('latpred')}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except LatpredError as error:
        complain(str(error))
        return exit_code(error)
    except KeyboardInterrupt:
        complain("interrupted")
        return 1
    except BrokenPipeError:
        # The reader of the output went away (`| head`): no error of ours; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("LATPRED_DEBUG"):
            raise
        complain(f"unexpected {type(error).__name__}: {error}; LATPRED_DEBUG=1 shows the traceback; please report it")
        return 1
