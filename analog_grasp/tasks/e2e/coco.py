"""METEOR, ROUGE-L and CIDEr of the COCO caption code, as used by the E2E NLG Challenge.

All three come from the package `pycocoevalcap` (extra `e2e`) and read the tokens of Stanford's PTB
tokeniser, without punctuation; that tokeniser and METEOR 1.5 are Java programs.

Source:
    X. Chen et al., arXiv 1504.00325 (the code); M. Denkowski and A. Lavie, WMT 2014 (METEOR); C.-Y.
    Lin, ACL workshop 2004 (ROUGE); R. Vedantam et al., CVPR 2015 (CIDEr).
"""

import shutil
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

NAMES = ("meteor", "rouge_l", "cider")
# Older versions of Java read and write in the encoding of the locale.
_JAVA = ("java", "-Dfile.encoding=UTF-8", "-Xmx2G")


@cache
def missing() -> str | None:
    """Return why these metrics cannot be computed on this machine; None if they can."""
    if find_spec("pycocoevalcap") is None:
        return 'the package pycocoevalcap is not installed (pip install "analog-grasp[e2e]")'
    if shutil.which("java") is None:
        return "the command java is not installed (Java 8 or newer)"
    try:
        subprocess.run(["java", "-version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the command java does not run ({error})"
    return None


def scores(
    names: Sequence[str], outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return metrics over all outputs: METEOR and ROUGE-L from 0 to 1, CIDEr from 0 to 10.

    Args:
        names: Metrics from `NAMES`.
        outputs: n texts.
        references: For each output one or more texts.

    Raises:
        RuntimeError: Java or `pycocoevalcap` is missing, or a Java program failed.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"The metrics {', '.join(names)} cannot be computed: {reason}.")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokens = iter(_tokenised([*outputs, *(text for texts in references for text in texts)]))
    tried = {i: [next(tokens)] for i in range(len(outputs))}
    targets = {i: [next(tokens) for _ in texts] for i, texts in enumerate(references)}
    scorers = {"meteor": _meteor, "rouge_l": Rouge, "cider": Cider}
    try:
        return {name: float(scorers[name]().compute_score(targets, tried)[0]) for name in names}
    except (OSError, ValueError) as error:
        _meteor.cache_clear()
        raise RuntimeError(f"METEOR's Java program failed ({error}); it is not scored.") from error


def _tokenised(texts: Sequence[str]) -> list[str]:
    """Return each text in lower case, tokens separated by one space, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    # Java has several line separators, and a text must stay on one line.
    lines = [" ".join(text.split()) for text in texts]
    done = subprocess.run(
        [*_JAVA, "-cp", str(files("pycocoevalcap.tokenizer") / STANFORD_CORENLP_3_4_1_JAR),
         "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        encoding="utf-8",
    )  # fmt: skip
    found = done.stdout.removesuffix("\n").split("\n")
    if done.returncode or len(found) != len(lines):
        raise RuntimeError(
            f"The PTB tokeniser returned {len(found)} lines for {len(lines)} "
            f"({done.stderr.strip()[-200:]}); METEOR, ROUGE-L and CIDEr cannot be computed."
        )
    return [" ".join(w for w in line.split(" ") if w not in PUNCTUATIONS) for line in found]


@cache
def _meteor() -> Any:
    """Return METEOR 1.5 as a running program, which takes seconds to start and is reused."""
    from pycocoevalcap.meteor.meteor import METEOR_JAR, Meteor

    class Utf8Meteor(Meteor):
        """METEOR in UTF-8 whatever the locale."""

        def __init__(self) -> None:
            self.meteor_p = subprocess.Popen(
                [*_JAVA, "-jar", str(files("pycocoevalcap.meteor") / METEOR_JAR),
                 "-", "-", "-stdio", "-l", "en", "-norm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.lock = threading.Lock()

        def __del__(self) -> None:
            # The original waits for its lock, which stays locked after a failed call.
            self.meteor_p.kill()
            self.meteor_p.communicate()

    return Utf8Meteor()
