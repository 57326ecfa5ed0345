"""The benchmark of integer products and the limits of the processor."""

import sys

import pytest
import roofline
import torch


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_vnni"), reason="needs AVX-512 VNNI"
)
def test_rates_are_printed_and_drawn(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(roofline.torch, "set_num_threads", lambda count: None)
    figure = tmp_path / "roofline.png"
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--quick", "--figure", str(figure)])
    roofline.main()
    printed = capsys.readouterr().out
    # 2 * 64^3 operations on 64 * 64 codes and limbs, and their sums of four bytes.
    assert "| small | fast | 21.3 |" in printed
    assert "| small | exact | 24 |" in printed
    assert figure.stat().st_size > 0


def test_a_processor_without_the_instruction_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(roofline.torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--quick"])
    with pytest.raises(SystemExit):
        roofline.main()
    assert "this processor lacks AVX-512 VNNI" in capsys.readouterr().err
