"""Compiling ahead of time, in a process of its own: the kernels of this one are interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.table import specializations
from models.variants import VARIANTS


def compiling(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", "kernels", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_kernel_for_sm_90(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    told = compiling(tmp_path, "dat_demo", "--kernel", "bias_gelu", "--target", "90", "--output", str(folder))
    assert told.returncode == 0, told.stderr
    index = json.loads((folder / "index.json").read_text())
    assert [one["constants"]["channels"] for one in index["kernels"]] == [64, 128, 256, 512]
    for one in index["kernels"]:
        cubin = (folder / one["cubin"]).read_bytes()
        assert cubin[:4] == b"\x7fELF"
        assert len(cubin) == one["cubin_bytes"]
        assert one["entry"].encode() in cubin
        assert f".entry {one['entry']}(" in (folder / one["ptx"]).read_text()
        assert list(one["parameters"])[:4] == ["out", "x", "bias", "elements"]
        assert 0 < one["registers"] <= 255
        assert one["spill_store_bytes"] == one["spill_load_bytes"] == 0
        assert one["num_warps"] == 4
        assert f"| {one['cubin_bytes']} | {one['registers']} |" in told.stdout


def test_a_variant_that_does_not_exist(tmp_path: Path) -> None:
    told = compiling(tmp_path, "dat_huge", "--output", str(tmp_path / "compiled"))
    assert told.returncode == 2
    assert "dat_huge" in told.stderr
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_constants_are_all_that_a_kernel_asks_for(variant: str) -> None:
    for one in specializations([variant]):
        assert [*one.kernel.parameters, *one.constants] == list(one.kernel.function.arg_names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_are_as_the_kernels_want_them(variant: str) -> None:
    for one in specializations([variant]):
        constants = one.constants
        blocks = [value for name, value in constants.items() if name.startswith("block")]
        assert all(value & (value - 1) == 0 for value in blocks), one.name
        if "tile_height" in constants:
            assert 1 <= constants["tile_height"] * constants["tile_width"] <= constants["block_cells"], one.name
        if one.kernel.name == "depthwise_convolution":
            assert constants["weight_channels"] % constants["block_channels"] == 0, one.name
        elif "channels" in constants and "block_channels" in constants:
            assert constants["channels"] <= constants["block_channels"], one.name
        if "block_taps" in constants:
            assert constants["kernel"] ** 2 * constants["colours"] <= constants["block_taps"], one.name


def test_the_table_follows_the_variants() -> None:
    constants = [one.constants for one in specializations(["dat_base_384"]) if one.kernel.name == "window_attention"]
    assert [(c["height"], c["window"], c["shift"]) for c in constants] == [
        (96, 12, 0),
        (96, 12, 6),
        (48, 12, 0),
        (48, 12, 6),
        (24, 12, 0),
        (12, 12, 0),
    ]
    keys = [one.constants["keys"] for one in specializations(["dat_pp_base_384"]) if "keys" in one.constants]
    assert keys == [144, 144, 144, 144]


def test_the_second_generation_keeps_its_tables_for_larger_images() -> None:
    sides = {
        (one.constants["height"], one.constants["table_height"])
        for one in specializations(["dat_pp_base_384", "dat_base_384"])
        if one.kernel.name == "deformable_attention"
    }
    assert sides == {(96, 111), (48, 55), (24, 27), (12, 13), (24, 47), (12, 23)}
