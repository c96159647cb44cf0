"""The Grafana dashboard asks only for what a real server exports, and `serving top` shows it."""

import asyncio
import json
import re
import socket
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tiny_bundle
import trustme
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from test_client_and_cli import command
from test_http import RED, SETTINGS, Held, form, serve, until
from test_process import port, process

from serving.channel import OPEN, Access
from serving.errors import ClientError
from serving.readings import Span, parse, read, since_start
from serving.tokens import new_token
from serving.top import frame, watch

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
OF_THE_SCRAPE = {"job", "instance"}  # Prometheus itself adds these
METRIC = re.compile(r"\b((?:calotype|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
EQUALS = re.compile(r'([a-z_]+)="([^"$]*)"')
NAMES = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")


def queries(node):
    """Every PromQL text of the dashboard, wherever it stands."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "definition") and isinstance(value, str):
                yield value
            yield from queries(value)
    elif isinstance(node, list):
        for one in node:
            yield from queries(one)


def asked(query):
    """Pairs of a metric's name and the labels that the query wants of it."""
    grouped = {label.strip() for labels in GROUPING.findall(query) for label in labels.split(",")}
    if listed := re.fullmatch(r"label_values\(.*, (\w+)\)", query):
        grouped = {listed[1]}
    for name, matchers in METRIC.findall(query):
        yield name, (grouped | set(NAMES.findall(matchers))) - OF_THE_SCRAPE


@pytest.fixture(scope="module")
def exposition(tmp_path_factory):
    """What a server exports that has answered, failed to read, and dropped pictures, tried a candidate, refused one."""
    models = tmp_path_factory.mktemp("served")
    tiny_bundle.write(models)
    tiny_bundle.write(models)
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)
    settings = replace(SETTINGS, pin="colours=1", shadow="colours=2:1")
    held = Held()

    async def scene(server, asking):
        first = asyncio.create_task(asking("/v1/classify", body=RED))
        await asyncio.to_thread(held.taken.wait, 20)
        assert (await asking("/v1/classify?timeout_ms=200", body=RED)).status == 504
        held.let_go.set()
        await first
        await asking("/v1/classify", **form(RED, b"no picture", tiny_bundle.picture("blue")))
        catalogue, value = server._dispatcher.catalogue, server._metrics.registry.get_sample_value
        await until(lambda: catalogue.candidate("colours", 2))
        await asking("/v1/classify", body=RED)
        await until(lambda: value("calotype_shadow_difference_count", {"model": "colours", "version": "2"}))
        return (await asking("/metrics")).text

    return serve(models, scene, settings=settings, wrap=held.around)[0]


def test_every_query_of_the_dashboard_is_exported(exposition):
    """Each metric's name with each label it is filtered or grouped by."""
    exported = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    wanted = [pair for query in queries(json.loads(DASHBOARD.read_text())) for pair in asked(query)]
    assert len(wanted) > 30
    assert [name for name, _ in wanted if name not in exported] == []
    assert [(name, labels - exported[name]) for name, labels in wanted if labels - exported[name]] == []


def test_every_value_that_the_dashboard_picks_out_is_exported(exposition):
    """status="OK", stage="input" and their like; $variables are the viewer's."""
    samples = [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]
    picked = [
        (name, set(EQUALS.findall(matchers)))
        for query in queries(json.loads(DASHBOARD.read_text()))
        for name, matchers in METRIC.findall(query)
        if EQUALS.search(matchers)
    ]
    assert len(picked) > 2
    for name, labels in picked:
        assert any(name == sample.name and labels <= sample.labels.items() for sample in samples), (name, labels)


def test_the_dashboard_shows_every_metric_of_the_server(exposition):
    """None is exported that nobody looks at."""
    shown = {name for query in queries(json.loads(DASHBOARD.read_text())) for name, _ in asked(query)}
    families = {family.name for family in text_string_to_metric_families(exposition)}
    ours = {name for name in families if name.startswith("calotype_")}
    assert [name for name in ours if not any(one.startswith(name) for one in shown)] == []


def test_names_follow_the_conventions_of_prometheus(exposition):
    """Counters end in _total, times are seconds, sizes bytes; everything has a help text; negotiation works."""
    for family in text_string_to_metric_families(exposition):
        assert family.documentation, family.name
        assert not re.search(r"_(ms|milliseconds|mb|count|total)$", family.name.removesuffix("_total"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_top_draws_what_the_server_did(exposition):
    """Rates and quantiles of a span; the pictures that were not answered, by reason."""
    console = Console(width=140, file=StringIO())
    console.print(frame("here:8080", since_start(parse(exposition, at_s=2e9))))
    text = console.file.getvalue()
    assert re.search(r"colours +│ 1 +│ yes ", text)
    for wanted in ("here:8080  Calotype", "colours", "failed: NOT_AN_IMAGE", "refused: deadline", "DEADLINE_EXCEEDED"):
        assert wanted in text


def test_top_takes_quantiles_of_the_new_observations_alone():
    """By hand: ten observations between two readings, five up to 1 s and five from 1 to 2 s."""
    names = ('a_bucket{{le="1"}}', 'a_bucket{{le="2"}}', 'a_bucket{{le="+Inf"}}', "a_sum", "a_count")
    text = "# TYPE a histogram\n" + "".join(f"{name} {{}}\n" for name in names)
    before, after = (
        parse(text.format(100, 100, 100, 50, 100), at_s=0),
        parse(text.format(105, 110, 110, 62, 110), at_s=5),
    )
    span = Span(before, after)
    assert span.quantile("a", 0.5) == pytest.approx(1.0)
    assert span.quantile("a", 0.9) == pytest.approx(1.8)
    assert (span.mean("a"), span.rate("a_count")) == (pytest.approx(1.2), 2)
    restarted = Span(after, before)
    assert restarted.growth("a_count") == 100


def test_series_that_leave_are_no_growth():
    """Those of a version that is long gone do: what is left has not been counted anew."""
    both = parse('# TYPE a counter\na_total{version="1"} 70\na_total{version="2"} 30\n', at_s=0)
    one = parse('# TYPE a counter\na_total{version="2"} 32\n', at_s=1)
    assert Span(both, one).growth("a_total") == 2


def test_top_prints_whatever_answers_and_is_asked():
    """What is no HTTP comes as escapes; an address with brackets is no markup."""

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"\x00\x1b[31m\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        done = command("top", "--once", "--address", f"127.0.0.1:{server.getsockname()[1]}")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "found no metrics" in done.stderr
    done = command("top", "--once", "--address", "[/]:80")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_top_once_prints_a_running_server(models):
    """One view, exit 0; where nobody listens one line, exit 1."""
    with process(models, "--http-address", ":0") as started:
        done = command("top", "--address", f"127.0.0.1:{port(started, 'http_port')}", "--once")
    assert (done.returncode, "colours" in done.stdout) == (0, True)
    gone = command("top", "--address", "127.0.0.1:1", "--once")
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "screen",
    [
        Console(file=StringIO(), width=160, force_terminal=True, _environ={"TERM": "xterm"}),
        Console(file=StringIO(), width=160, force_terminal=True, _environ={"TERM": "dumb"}),
        Console(file=StringIO(), width=160),
    ],
    ids=["terminal", "dumb terminal", "pipe"],
)
def test_top_goes_on_showing_what_it_is_shown_on(models, screen):
    """Each view at its time, also where nothing can be drawn over; a gap is told."""
    views = []
    with process(models, "--http-address", "127.0.0.1:0") as started:
        address = f"127.0.0.1:{port(started, 'http_port')}"

        def pause(seconds):
            views.append(screen.file.getvalue())
            if len(views) == 2:
                started.kill()
                started.wait(60)
            if len(views) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watch(address, OPEN, every_s=7, console=screen, pause=pause)
    assert ["colours" in views[0], "colours" in views[1][len(views[0]) :]] == [True, True]
    assert "found no metrics" in views[2][len(views[1]) :]


def test_top_shows_who_was_turned_away():
    """Requests, not pictures: nobody has looked how many they bring."""
    text = '# TYPE calotype_turned_away counter\ncalotype_turned_away_total{reason="token"} 100\n'
    console = Console(width=140, file=StringIO())
    console.print(frame("here:8080", Span(parse(text.replace("100", "80"), at_s=0), parse(text, at_s=10))))
    assert re.search(r"requests turned away: token\W+2\.00", console.file.getvalue())


def test_top_tells_what_is_missing(models, tmp_path):
    """A token, or TLS: the address is right."""
    token, line = new_token("alice")
    (tmp_path / "tokens").write_text(str(line))
    with process(models, "--http-address", "127.0.0.1:0", "--tokens", str(tmp_path / "tokens")) as started:
        address = f"127.0.0.1:{port(started, 'http_port')}"
        with pytest.raises(ClientError, match="give --token"):
            read(address)
        assert read(address, Access(token=token)).samples
    ca = trustme.CA()
    cert, key, pem = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    made = ca.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    trustme.CA().cert_pem.write_to_path(str(pem))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    with process(models, "--http-address", "127.0.0.1:0", *tls) as started:
        address = f"127.0.0.1:{port(started, 'http_port')}"
        for access in (OPEN, Access(tls_ca=pem)):
            with pytest.raises(ClientError, match="--tls-ca"):
                read(address, access)
