"""A stage of AlignCap on a Ray cluster whose machines share no file system: `pip install "ray>=2.50"`, then

    aligncap shard data/train.jsonl --out shards --size 200MB
    python examples/ray_stage.py shards captions.jsonl caption --model runs/model
    python examples/ray_stage.py shards candidates.jsonl candidates --model runs/model --gpus 1

Every task is `aligncap STAGE` on one shard, which Ray carries to the machine and back; the model must be
there under the same name. Parts lie in OUT.parts until all are there, so a killed run goes on. The rows are
those of one command over all shards, since captions and candidates depend on no other clip of a batch.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import ray

from aligncap.audio.members import member_of
from aligncap.utils.io import read_jsonl, write_jsonl


def run_shard(argv: list[str], tar: str, files: dict[str, bytes]) -> bytes:
    """What `aligncap` makes of one shard, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        words = [sys.executable, "-m", "aligncap", *argv, "--manifest", "part.jsonl", "--out", "out.jsonl"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{tar}: {done.stderr[-2000:]}")
        return (Path(folder) / "out.jsonl").read_bytes()


def shards(folder: Path, manifest: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each shard with the files that its task needs: the tar, its rows, the index."""
    index = (folder / "index.json").read_bytes()
    for tar, rows in groupby(read_jsonl(manifest), key=lambda row: member_of(row["audio"]).tar):
        part = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        yield tar, {tar: (folder / tar).read_bytes(), "part.jsonl": part, "index.json": index}


def main(folder: str, out: str, argv: list[str], gpus: float = 0, at_once: int = 64) -> None:
    (manifest,) = Path(folder).glob("*.jsonl")
    parts = Path(f"{out}.parts")
    parts.mkdir(exist_ok=True)
    task, running = ray.remote(num_gpus=gpus)(run_shard), {}

    def keep(least: int) -> None:
        """Wait until no more than `least` tasks run; write what the others made."""
        while len(running) > least:
            (ready, *_), _ = ray.wait(list(running))
            path, lines = running.pop(ready), ray.get(ready).splitlines()
            rows = [json.loads(line) for line in lines]
            write_jsonl(
                path, [row | {"manifest": str(manifest)} if "manifest" in row else row for row in rows]
            )

    names = []
    for tar, files in shards(Path(folder), manifest):
        names.append(parts / f"{tar}.jsonl")
        if not names[-1].exists():
            running[task.remote(argv, tar, files)] = names[-1]
            keep(at_once - 1)
    keep(0)
    write_jsonl(out, (row for name in names for row in read_jsonl(name)))


if __name__ == "__main__":
    place, out, *rest = sys.argv[1:]
    gpus = float(rest.pop(rest.index("--gpus") + 1)) if "--gpus" in rest else 0
    main(place, out, [word for word in rest if word != "--gpus"], gpus)
