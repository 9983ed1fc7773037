"""A served tiny model."""

from __future__ import annotations

import pytest

for package in ("fastapi", "multipart", "prometheus_client", "gradio"):
    pytest.importorskip(package, reason=f"the extra serve is not installed: no {package}")
