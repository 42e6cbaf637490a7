"""Where a result comes from: versions, machine, base and data. Nothing of the environment's variables is recorded."""

import datetime
import platform
from importlib.metadata import version

import tuneoff
from tuneoff.running.session import Session
from tuneoff.study.records import Provenance

RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "safetensors", "numpy")


def provenance(session: Session) -> Provenance:
    """Return the provenance of what a session is about to record."""
    return Provenance(
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tuneoff_version=tuneoff.__version__,
        versions={name: version(name) for name in RECORDED_PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        device=session.runtime.device_name,
        num_threads=session.runtime.num_threads,
        micro_batch=session.setup["micro_batch"],
        evaluation_tokens=session.setup.get("evaluation_tokens"),
        num_sittings=session.setup["num_sittings"],
        cohort=tuple(session.setup["cohort"]) if len(session.setup["cohort"]) > 1 else (),
        model_sha256=session.model_sha256,
        data_sha256=session.data.sha256,
        notes=session.notes,
        cautions=session.data.cautions,
    )
