"""The whole example on one machine: a consortium of three sites, its server, and `train.py` at every site.

python examples/trainer/run.py FOLDER [SETTINGS]
"""

import subprocess
import sys
from pathlib import Path

from ffm.consortium import ConsortiumConfig, ServerConfig, create_consortium
from ffm.demo import free_port
from ffm.task import build_manifest, load_settings

HERE = Path(__file__).parent


def main(folder: Path, settings_file: Path) -> int:
    """Make keys and documents, start everybody, wait for the server; its exit status."""
    settings = load_settings(settings_file)
    folder.mkdir(parents=True)
    written = settings.data.write(folder)
    config = ConsortiumConfig(
        consortium="trainer-example",
        task=str(settings_file),
        server=ServerConfig(host="127.0.0.1", port=free_port()),
        clients=tuple(written.sites),
    )
    made = create_consortium(config, folder / "consortium", build_manifest(settings, next(iter(settings.models))))
    for name, site in made.clients.items():
        written.sites[name].rename(site / "records.csv")
    run = folder / "run"
    server = subprocess.Popen([sys.executable, "-m", "secagg", "server", str(made.server), "--run", str(run)])
    sites = [subprocess.Popen([sys.executable, str(HERE / "train.py"), str(site)]) for site in made.clients.values()]
    try:
        status = None
        while status is None:
            try:
                status = server.wait(timeout=1)
            except subprocess.TimeoutExpired:
                status = next((code for site in sites if (code := site.poll())), None)  # one that failed
        for site in sites:
            status = status or site.wait(timeout=60)
    finally:
        for process in (server, *sites):
            process.kill()
    if status == 0:
        print(f"the common adapter, as plain PEFT loads it: {run / 'adapter'}")
    return status


if __name__ == "__main__":
    wanted = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "settings.toml"
    sys.exit(main(Path(sys.argv[1]), wanted))
