"""What every record of a manifest is: values that do not change, under names that are all known."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(gt=0)]
"""A length in pixels or cells, or another count of at least one."""


class Record(BaseModel):
    """A part of a manifest, which may not hold a name that is not expected."""

    model_config = ConfigDict(frozen=True, extra="forbid")
