"""Whether each stub of `typings` is needed: without it, strict pyright has to fail.

python tests/typed/stubs_needed.py
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "typings"


def main() -> None:
    names = sorted(path.relative_to(STUBS) for path in STUBS.rglob("*.pyi"))
    needless = [name for name in names if errors_without(name) == 0]
    for name in needless:
        print(f"needless: {name}")
    sys.exit(1 if needless else 0)


def errors_without(name: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "typings"):
            shutil.copytree(ROOT / part, Path(folder) / part)
        (Path(folder) / "typings" / name).unlink()
        settings = {
            "include": ["src"],
            "stubPath": "typings",
            "typeCheckingMode": "strict",
            "pythonVersion": "3.11",
        }
        (Path(folder) / "pyrightconfig.json").write_text(json.dumps(settings))
        command = ["pyright", "--project", folder, "--outputjson"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    summary = json.loads(done.stdout)["summary"]
    assert summary["filesAnalyzed"], done.stdout
    errors = summary["errorCount"]
    print(f"{errors} errors without {name}")
    return errors


if __name__ == "__main__":
    main()
