"""examples/lora_int4.py, with few steps."""

import lora_int4


def test_lora_learns_over_weights_that_stay(capsys):
    found = lora_int4.main(["--steps", "60"])
    assert found["trained in float32"] < 6
    assert abs(found["rounded to four bits"] - found["trained in float32"]) < 0.3
    assert found["after LoRA"] < found["on text in capitals"] - 0.5
    assert "four-bit weights stayed" in capsys.readouterr().out
