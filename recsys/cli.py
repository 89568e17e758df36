"""The `recsys` command: one function a subcommand, each a thin door to a room of the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from recsys.cli_bundle import bundle, publish, repin, score
from recsys.cli_jobs import downstream, embed, prior, ranker, refresh, twotower, upstream
from recsys.cli_retrieve import index, retrieve, towers
from recsys.cluster import Cluster
from recsys.config import ConfigError
from recsys.jobs import run_here, warm_up
from recsys.led import leading
from recsys.refresh.errors import GateRefusedError
from recsys.stopping import INTERRUPTED, ends_anyway, stop_on_sigterm
from recsys.telling import end_of_all_attempts, ended_before, first_to_tell

# Rooms are imported inside the functions, once configs are read: `recsys --help` answers at once, so does a mistake in
# a config, and a launcher loads no model.


def prepare(
    dataset: Annotated[
        Literal["log", "kuairand", "deskdrop", "movielens-1m", "movielens-100k", "completejourney", "synthetic"],
        tyro.conf.Positional,
    ],
    config: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    *,
    out: Path,
    source: Path | None = None,
) -> None:
    """Turn a log of your own, or raw public files, into events Parquet and a schema.

    Args:
        dataset: `log`: your own, see config. Or a public data set; `synthetic` needs no source, nor does
            `completejourney` where its package is installed.
        config: Of a log: LOG.toml, which says what its columns and actions mean (recsys/config/log.py).
        out: Folder to write to.
        source: Folder of the raw files; of a log the one that LOG.toml's paths are relative to, if not its own.
    """
    if dataset == "log":
        from recsys.data.log.command import prepare_command

        prepare_command(config, source, out)
        return
    if config is not None:
        raise ConfigError(f"{config}: only `recsys prepare log` takes a config; leave it out for {dataset}")
    from recsys.folders import make_out
    from recsys.recipes import RECIPES

    RECIPES[dataset].check_source(source)
    make_out(out)
    RECIPES[dataset].prepare(source, out)
    print(f"prepared {dataset} in {out}")


def run(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    *,
    data: Path | None = None,
    out: Path,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Go the whole way: train the upstreams, publish their vectors, train the rankers, report what it was worth.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        recipe: kuairand, deskdrop, movielens-1m, movielens-100k, completejourney, synthetic, or the path of a TOML
            config.
        data: For a recipe: folder of the raw public files. For a TOML config: folder its paths are relative to.
        out: Folder of the run: store, checkpoints, report.json, report.html.
        set_: Change one value of the config, `path=value`; may be repeated: --set upstreams.ctr.training.epochs=1
    """
    from recsys.opening import open_study
    from recsys.recipes import RECIPES

    with leading(run_here) as leads:
        if leads:
            opened = open_study(recipe, RECIPES, data, out, set_)
            warm_up()
            from recsys.pipeline import run_study

            run_study(opened, out)


def check(
    config: Annotated[str, tyro.conf.Positional],
    /,
    *,
    data: Path | None = None,
    store: str | None = None,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Tell every mistake in a config, and in the schemas and files that it names, at once; in a second or two.

    What only reading every row can tell, `recsys run` tells before it trains anything.

    Args:
        config: A recipe's name, or the path of a TOML config: of a study, or of a job (OUT/configs of a run has them).
        data: Folder that the config's paths are relative to; left out: schemas and files are not looked at.
        store: Path or URL of the store that a ranker's config is to read: are its series there?
        set_: Change one value of the config before it is checked, `path=value`; may be repeated.
    """
    if Path(config).is_file():
        from recsys.checks import check_config

        check_config(Path(config), data, set_, store)
    else:
        from recsys.recipes import check_recipe

        check_recipe(config, data, set_)
    more = "nor with the schemas and files that it names" if data else "--data DIR looks at schemas and files too"
    print(f"{config}: nothing is wrong ({more})")


def plan(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    data: Path,
    cluster: Annotated[Cluster, tyro.conf.OmitArgPrefixes],
    out: Path | None = None,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Tell where the tables of a config's models would lie on a cluster of GPUs, what a rank holds, what does not fit.

    No GPU is needed, and no cluster. Defaults are an H100 SXM's, in machines of eight.

    Args:
        config: A TOML config: of a study, an upstream, a refresh, or of rankers.
        data: Folder that the config's paths are relative to; ids are counted there where a schema gives no rows.
        cluster: GPUs and machines.
        out: Folder of a run of this config, which has counted the tables' rows; left out: they are counted now.
        set_: Change one value of the config, `path=value`; may be repeated.
    """
    from recsys.checks import check_config

    settings = check_config(config, data, set_)
    from recsys.plan import print_plan

    print_plan(settings, data, out, cluster)


def config(kind: Annotated[str, tyro.conf.Positional] = "study", /) -> None:
    """Print every key of a config with its default and its meaning, as TOML to start one of your own with.

    Args:
        kind: study, for `recsys run` and `recsys daily`; or that of a job: upstream, refresh, ranker, towers; or log,
            for `recsys prepare log`; or schema, the file that says what the columns of events mean.
    """
    from recsys.checks import KINDS
    from recsys.config import ConfigError
    from recsys.config.listing import listing
    from recsys.data.schema import TABLES, Schema
    from recsys.mistakes import meant

    known = [*KINDS, "schema"]
    if kind not in known:
        raise ConfigError(f"config {kind!r} is unknown{meant(kind, known)}; use one of {', '.join(known)}")
    print(listing(Schema, TABLES) if kind == "schema" else listing(KINDS[kind]), end="")


def demo(
    *,
    out: Path,
    data: Literal["synthetic", "completejourney"] = "synthetic",
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
    small: bool = False,
    full: bool = False,
) -> None:
    """Go the whole way on a synthetic market that is made on the spot, and show what can be done with the result.

    Args:
        out: Folder of the run.
        data: completejourney: instead on a retail panel, provenance disputed, that a package of pip's has.
        set_: Change one value of the config, `path=value`; may be repeated.
        small: A tenth of the market, in a minute: to see that everything works, not to see a lift.
        full: The recipe synthetic: upstreams trained for longer, three seeds a ranker, rankers of one surface alone.
            Or the recipe completejourney.
    """
    if small and data != "synthetic":
        raise ConfigError(f"--small is of the synthetic market, there is none of {data}: leave it out")
    short = "demo" if data == "synthetic" else f"{data}-demo"
    run("synthetic-small" if small else data if full else short, out=out, set_=set_)
    from recsys.study.next_steps import show_next_steps

    show_next_steps(out)


def tune(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    *,
    trials: int,
    data: Path | None = None,
    out: Path,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Search for settings of model, loss, training and rankers, by the validation files alone; no test file is opened.

    Stopped, it goes on where it was when the same command is given again; with more trials it adds to those there are.

    Args:
        recipe: As for `recsys run`.
        trials: How many settings to try; the first are the config's own.
        data: As for `recsys run`.
        out: Folder of the search: tune.json, tune.html, and best.toml, the config of the best trial.
        set_: Change the config, `path=value`: what is given is not searched. Or narrow the search by a list or a range:
            --set upstreams.*.training.epochs=[1,2] --set rankers.training.dense_lr={low=0.001,high=0.01}
    """
    from recsys.config import ConfigError
    from recsys.opening import open_study
    from recsys.recipes import RECIPES
    from recsys.tune.space import around, split_assignments

    if trials < 1:
        raise ConfigError(f"--trials is {trials}; use 1 or more")
    space, assignments = split_assignments(set_)
    opened = open_study(recipe, RECIPES, data, out, assignments, tested=False)
    space = around(opened.study, space)
    warm_up()
    from recsys.tune.search import search

    search(opened, space, trials, out)


def daily(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    *,
    data: Path | None = None,
    out: Path,
    follow: bool = False,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Replay days: refresh the upstreams day by day, then report what each way of averaging, and refreshing, was worth.

    Stopped, it goes on where it was when the same command is given again. Exit code 3: a gate refused a tag.

    Args:
        recipe: kuairand, deskdrop, completejourney, synthetic, synthetic-small, or the path of a TOML config with
            [refresh.days] and [spans].
        data: For a recipe: folder of the raw public files. For a TOML config: folder its paths are relative to.
        out: Folder of the run: store, checkpoints, daily.json, daily.html.
        follow: Wait for days that are not there yet, until the last one is.
        set_: Change one value of the config, `path=value`; may be repeated: --set refresh.days.last=2022-05-08
    """
    from recsys.opening import open_study
    from recsys.recipes import DAILY

    refused = []
    with leading(run_here) as leads:
        if leads:
            opened = open_study(recipe, DAILY, data, out, set_)
            opened.study.daily()
            warm_up()
            from recsys.replay import run_daily

            refused = run_daily(opened, out, follow=follow)
    if refused:
        raise GateRefusedError("published, but not tagged:\n  " + "\n  ".join(refused))


def rank(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    data: Path,
    store: str,
    out: Path,
    ranks: int = 2,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Train rankers of your own on the vectors of a store that is there, and report what these were worth to them.

    No upstream is trained. Nothing that the folder of another run holds is in the way. Stopped, it goes on where it was
    when the same command is given again.

    Args:
        config: The rankers' TOML config (`recsys config ranker`).
        data: Folder that the config's paths are relative to.
        store: The store to read, say runs/mine/store or s3://bucket/prefix.
        out: Folder that gets the result, in downstream/<name of the config>: report.html, report.json.
        ranks: Processes that train each ranker together.
        set_: Change one value of the config, `path=value`; may be repeated.
    """
    from recsys.checks import check_rankers

    settings = check_rankers(config, data, store, set_, compared=True)
    warm_up()
    from recsys.rank import run_rankers

    run_rankers(settings, data, store, out, ranks)


def report(*, out: Path) -> None:
    """Print the report of a finished run: the ablation's, that of the days, or that of `recsys rank`.

    Args:
        out: Folder of the run; of `recsys rank`, downstream/<name> in it.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"there is no folder {out}: give the --out of a run that has come to its end")
    daily = (out / "daily.json").is_file()
    if not daily and not (out / "report.json").is_file():
        raise FileNotFoundError(
            f"{out} holds neither report.json nor daily.json: give the --out of a run that has come to its end"
        )
    from recsys.study.daily_report import load_daily
    from recsys.study.report import load_report
    from recsys.study.terminal import print_daily, print_report

    if daily:
        print_daily(load_daily(out))
    else:
        print_report(load_report(out))


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system says'}: {error.strerror}"
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def run_command() -> None:
    """Run the subcommand that `sys.argv` names.

    Errors that a user can mend are one line and exit code 2; a gate that refused a tag: exit code 3; SIGTERM: exit code
    75, with which nothing failed and the same command goes on.
    """
    stop_on_sigterm()
    functions = (
        *(demo, run, daily, rank, check, plan, config, tune, prepare, report),
        *(bundle, score, repin, publish),
        *(towers, index, retrieve),
        *(upstream, refresh, embed, prior, downstream, ranker, twotower),
    )
    commands = {function.__name__: function for function in functions}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="recsys", description=__doc__)
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        ours = type(error).__module__.startswith(("recsys.", "embedding_store."))
        if not ours and not isinstance(error, OSError):  # a missing file or a full disk is no fault of the program
            raise  # its traceback is wanted
        refused = isinstance(error, GateRefusedError)
        kind = "refused" if refused else "error"
        if first_to_tell(said := _in_words(error)):
            print(f"{kind}: {said}", file=sys.stderr)
        code = 3 if refused else 2
        if not isinstance(error, OSError):  # a disk may have room again
            end_of_all_attempts(code)
        raise SystemExit(code) from None


def main() -> None:
    """Entry point."""
    if code := ended_before():
        raise SystemExit(code)
    try:
        run_command()
    finally:
        ends_anyway()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One rank of a job, its work on disk: gloo's threads outlive destroy_process_group and, rarely, abort the
        # interpreter while it ends ("terminate called without an active exception").
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
