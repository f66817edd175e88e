"""`distillkit serve`: an artifact behind HTTP, with rows of many requests answered together. No torch here.

fastapi and uvicorn come with the extra `serve` and are imported when a server starts.
"""

from __future__ import annotations

from distillkit.serving.limits import Limits as Limits
from distillkit.serving.start import start as start
