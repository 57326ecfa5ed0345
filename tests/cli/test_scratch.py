import time


def test_x(ag, small_run, tiny, tmp_path):
    outs = []

    def go(*a):
        t = time.time()
        e = ag(*a)
        outs.append(f"{a[0]} rc={e.status} {time.time() - t:.1f}s\n{e.out}\n--err--\n{e.err}")

    go(*small_run, "--out", tmp_path / "x", "--epochs", "12", "--learning-rate", "0.05")
    go("report", tmp_path / "x")
    go(
        "train",
        "--adapter",
        "grasp",
        *tiny,
        "--groups",
        "4",
        "--epochs",
        1,
        "--out",
        tmp_path / "a",
    )
    go("deploy", tmp_path / "a", *tiny[2:], "--device", "rram-wan2022", "--time", "1y")
    go("drift", tmp_path / "a", *tiny, "--device", "rram-wan2022", "--times", "1y")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"junk" * 30)
    go("deploy", tmp_path / "a", *tiny)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    go("deploy", tmp_path / "a", *tiny)
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    go("deploy", tmp_path / "a", *tiny)
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    go("deploy", tmp_path / "a", *tiny)
    go("compare", *tiny, "--out", tmp_path / "y", "--target-modules", "foo")
    go("compare", *tiny, "--out", tmp_path / "y", "--groups", "444")
    go("compare", "--model", tmp_path, "--out", tmp_path / "y", "--groups", "444")
    go("compare", *tiny, "--out", "/proc/y")
    (tmp_path / "f").write_text("")
    go("compare", *tiny, "--out", tmp_path / "f" / "x", "--groups", 2)
    go("compare", *tiny, "--config", tmp_path / "f" / "x", "--groups", 2)
    go("compare", *tiny, "--devices", "", "--groups", 2)
    go("report", tmp_path)
    (tmp_path / "report").write_text("\n\n".join(outs))
