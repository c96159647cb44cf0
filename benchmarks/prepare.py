"""Make what the serving benchmark needs and print it, model first: `python -m benchmarks.prepare DATA MODEL`.

Without DATA, made-up photographs; without MODEL, a linear probe on DATA, exported with every variant that earns its
place.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.photographs import write_photographs
from bundle.repository import versions

PLACE = Path(".cache/bench")


def main() -> None:
    """Print the two paths."""
    named_data, named_model = sys.argv[1:]
    data = Path(named_data) if named_data else write_photographs(PLACE / "photographs")
    model = Path(named_model) if named_model else _fitted(data)
    sys.stdout.write(f"{model} {data}\n")


def _fitted(data: Path) -> Path:
    name, models = "bench-" + data.name, PLACE / "models"
    if not versions(models, name):
        run = PLACE / "runs" / name
        shutil.rmtree(run, ignore_errors=True)  # of a fit or an export that was interrupted
        trainer = Path(sys.executable).parent / "trainer"
        fit: list[str | Path] = ["fit", data, "--out", run, "--epochs", "0"]
        commands = (fit, ["export", run, "--to", models, "--name", name])
        for command in commands:
            if exit_code := subprocess.run([trainer, *command], check=False, stdout=sys.stderr).returncode:
                sys.exit(exit_code)  # it has said why
    return models / name / str(versions(models, name)[-1])


if __name__ == "__main__":
    main()
