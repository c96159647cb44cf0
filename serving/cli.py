"""The commands of the service: run, classify, bench, top, health, token. Results to stdout, logs to stderr.

Exit codes: 0 done, 1 the server or a picture failed, 2 the user's call was wrong.
"""

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Final

import grpc
import structlog
import typer
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from bundle.errors import CalotypeError
from bundle.flags import spread
from serving import bench as benchmark
from serving.answers import Classification
from serving.channel import Access
from serving.cli_show import show_answers, show_measurement
from serving.client import DEFAULT_ADDRESS, Client, with_next_step
from serving.errors import ClientError, StartupError, UnreadableFileError
from serving.memory import freeze_heap
from serving.readings import DEFAULT_HTTP_ADDRESS, read, since_start
from serving.settings import ServerSettings
from serving.variables import mistyped_variables

app = typer.Typer(
    help="Serve image classifiers over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the names of options and variables at 80 columns
)

Images = Annotated[list[Path], typer.Argument(help="Name picture files.", show_default=False)]
Address = Annotated[str, typer.Option(help="Call the server at this host:port.", envvar="CALOTYPE_SERVER")]
Model = Annotated[str, typer.Option(help="Ask this model; empty: the default one.")]
Timeout = Annotated[float, typer.Option(help="Wait at most so many s for an answer.", min=0.001, max=86_400)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]


_CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@app.command(context_settings={"auto_envvar_prefix": "CALOTYPE"})
@spread(ServerSettings)
def run(
    models: Annotated[
        Path,
        typer.Argument(help="Serve the newest version of every model below this folder.", envvar="CALOTYPE_MODELS"),
    ],
    settings: ServerSettings,
) -> None:
    """Serve a folder of models until SIGTERM or Ctrl-C."""
    from serving import process, workers
    from serving.logs import configure_logs

    configure_logs(log_format=settings.log_format, log_level=settings.log_level)
    for name, meant in mistyped_variables(os.environ, has_tokens=settings.tokens is not None):
        structlog.get_logger(__name__).warning("unknown variable", name=name, meant=meant)
    try:
        (workers.run if settings.workers > 1 else process.run)(models, settings)
    except StartupError as error:
        if settings.log_format != "json":  # for a person `main` tells it
            raise
        structlog.get_logger(__name__).error("cannot serve", reason=str(error))
        raise typer.Exit(1) from None


@app.command()
@spread(Access)
def classify(
    images: Images,
    *,
    access: Access,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    top_k: Annotated[int, typer.Option(help="Show so many labels a picture.", min=1, max=2**32 - 1)] = 5,
    min_score: Annotated[float, typer.Option(help="Leave out labels below this score, 0..1.", min=0, max=1)] = 0.0,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Classify picture files with a running server."""
    with Client(address, access=access) as client:
        answers: list[Classification] = []
        try:
            for data in _read(images):
                answer = client.classify([data], model=model, top_k=top_k, min_score=min_score, timeout_s=timeout)
                answers.append(answer)
        finally:  # what has been answered before one fails
            if answers:
                show_answers(images[: len(answers)], answers, as_json=as_json)
    if any(answer.results[0].error for answer in answers):
        raise typer.Exit(1)


@app.command()
@spread(Access)
def bench(
    images: Images,
    *,
    access: Access,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    concurrency: Annotated[int, typer.Option(help="Keep so many requests under way (closed loop).", min=1)] = 1,
    rate: Annotated[
        float, typer.Option(help="Send so many requests/s, Poisson (open loop); 0: closed.", min=0, max=1_000_000)
    ] = 0.0,
    warm_up: Annotated[float, typer.Option(help="Send for so many s before anything is measured.", min=0)] = 0.0,
    seconds: Annotated[float, typer.Option(help="Measure for so many s.", min=0.1)] = 10.0,
    requests: Annotated[int, typer.Option(help="Stop after so many requests; 0: only by time.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed the arrivals.")] = 0,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure latency and throughput of a running server."""
    load = benchmark.Load(
        address=address,
        access=access,
        concurrency=concurrency,
        rate=rate,
        warm_up_s=warm_up,
        seconds=seconds,
        requests=requests,
        model=model,
        timeout_s=timeout,
        seed=seed,
    )
    freeze_heap()  # or the search for cycles would count as the server's latency
    measured = uvloop.run(benchmark.measure(_read(images), load))
    show_measurement(measured, as_json=as_json)
    if measured.errors:
        if not measured.pictures_per_s:
            status = max(measured.errors, key=measured.errors.__getitem__)
            typer.echo(with_next_step(f"{address}: {status}, no picture was answered", status=status), err=True)
        raise typer.Exit(1)


@app.command()
@spread(Access)
def top(
    *,
    access: Access,
    address: Annotated[
        str, typer.Option(help="Read the metrics at this host:port, of HTTP.", envvar="CALOTYPE_HTTP")
    ] = DEFAULT_HTTP_ADDRESS,
    every: Annotated[float, typer.Option(help="Look again after so many s.", min=0.1, max=3600)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view of all since the start, and end.")] = False,
) -> None:
    """Watch a running server: throughput, latencies, queue, batches, refusals."""
    from serving import top as view

    if once:
        console = Console(width=None if sys.stdout.isatty() else 140)  # a pipe has no width
        console.print(view.frame(address, since_start(read(address, access))))
        return
    with suppress(KeyboardInterrupt):
        view.watch(address, access, every_s=every, console=Console())


@app.command()
@spread(Access)
def health(
    *,
    access: Access,
    address: Address = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="Ask for this service or model; empty: the whole server.")] = "",
    timeout: Timeout = 2.0,
) -> None:
    """Ask a server whether it is SERVING; exit 0 if so, else 1."""
    with access.channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout, metadata=access.metadata()
            )
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        except grpc.RpcError as error:
            status = error.code().name
            asked = f"{address}: {service}" if service else address
            text = f"{asked}: {' '.join(str(error.details()).split())}"
            typer.echo(with_next_step(text, status=status), err=True)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name whom the token is for.", show_default=False)],
    rate: Annotated[
        float, typer.Option(help="Allow so many requests/s of each worker; 0: no limit.", min=0, max=999_999)
    ] = 0.0,
) -> None:
    """Make a random token and the line that lets it in."""
    from serving.tokens import new_token

    secret, line = new_token(name, requests_per_s=rate)
    typer.echo(f"token: {secret}\nline:  {line}")
    typer.echo(
        "keep the token, it is not stored; append the line to FILE; next: serving run models --tokens FILE", err=True
    )


def main() -> None:
    """Run the command line; expected errors become one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file may have a name that is no UTF-8
    try:
        app()
    except StartupError as error:
        _die(error, exit_code=1)
    except ClientError as error:
        _die(error, exit_code=2 if error.status in ("INVALID_ARGUMENT", "NOT_FOUND") else 1)
    except CalotypeError as error:
        _die(error, exit_code=2)
    except UnicodeEncodeError as error:
        _die(f"{error.object!r}: found what is no UTF-8, wanted text", exit_code=2)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is left would be tried, and fail, again at the exit
        _die(f"stdout: {error.strerror}; wanted to write there", exit_code=1)


def _die(error: Exception | str, *, exit_code: int) -> None:
    typer.echo(" ".join(str(error).split()), err=True)
    sys.exit(exit_code)


def _read(images: list[Path]) -> list[bytes]:
    try:
        return [path.read_bytes() for path in images]
    except OSError as error:
        raise UnreadableFileError(f"{error.filename}: {error.strerror}; wanted a picture file") from error
