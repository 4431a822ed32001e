"""Whether each command of the pages for operators (docs/operations.md, docs/alerts.md) is run by a suite as it stands there: by
tests/e2e, or by tests/runbooks.rs. What is not is listed here with the reason, and nothing else is."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
sys.dont_write_bytecode = True
import pages  # noqa: E402

OTHERWISE = {
    "kind is made by nobody here; `make image` is tests/image/run, and tests/e2e applies the overlay under another namespace": """
        kind create cluster
        make image
        kind load docker-image hookgate:0.2.0
        kubectl apply -k k8s/overlays/dev
        buildah push hookgate:0.2.0 docker-archive:hookgate.tar:hookgate:0.2.0
        kind load image-archive hookgate.tar""",
    "there is no registry to push to": """
        IMAGE=registry.example.com/hookgate:0.2.0 make image && docker push registry.example.com/hookgate:0.2.0""",
    "the functions are taken from the page as they are (backup.py, production.py)": """
        kubectl exec -n hookgate deploy/hookgate -- /hookgate --config /etc/hookgate/default.toml \\
        --config /etc/hookgate/kubernetes.toml --config /etc/hookgate/site.toml \\
        --config /run/secrets/hookgate/operator.toml "$@\"""",
    "the ports are forwarded by tests/e2e, which lets the system choose a free one": """
        kubectl -n stores port-forward redis-0 6379""",
    "says how to log in; backup.py does so by a port of its own": """
        redis-cli -u redis://hookgate-operator@… -n 1 --askpass""",
    "the log of a Job that failed, which none does here": """
        kubectl -n hookgate logs job/hookgate-test
        kubectl -n hookgate logs job/…""",
    "tests/runbooks.rs runs it with the times and options of docs/espocrm.md": """
        hookgate reconcile --failed
        hookgate reconcile --since TIME --dry-run
        hookgate doctor --espocrm --metrics""",
    "tests/alerts/run takes the rules out of the file by itself": """
        sed '1,/^spec:/d; s/^  //' k8s/components/alerts/prometheusrule.yaml > hookgate-rules.yaml""",
    "what was tried with it and is not to be done": """
        kubectl exec -i … <redis.rdb""",
    "names of commands, which the sentence is about": """
        kubectl apply -k
        kubectl cp
        kubectl describe pod
        kubectl exec
        kubectl get pods -l app.kubernetes.io/name=hookgate
        kubectl port-forward
        kubectl rollout restart
        kubectl rollout status
        kubectl rollout undo
        kubectl top
        hookgate send
        helm rollback
        helm test
        helm upgrade
        nats stream purge""",
}


def of_pages():
    """Each command, and where it is."""
    found = {}
    for page in (pages.OPERATIONS, pages.ALERTS):
        text = page.read_text()
        for block in pages.blocks(text):
            # Not what is given to a command as its input.
            for line in pages.lines(re.sub(r"(<<END)\n.*?\nEND$", r"\1", block, flags=re.DOTALL | re.MULTILINE)):
                found.setdefault(line, f"a block of docs/{page.name}")
        for piece in pages.in_sentences(text):
            if re.match(r"(hookgate [a-z]|(kubectl|redis-cli|nats|helm|curl|cp|kind|buildah|docker) )", piece):
                found.setdefault(piece, f"docs/{page.name}")
    return found


def run_by_suites():
    """Lines of texts in the suites, and the blocks of the headings that they follow."""
    ran = set()
    for file in (ROOT / "tests/e2e").glob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                ran.update(pages.lines(node.value))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "blocks" and isinstance(node.args[0], ast.Constant):
                for block in pages.blocks(pages.part(pages.OPERATIONS, node.args[0].value)):
                    ran.update(pages.lines(block))
    ran.update(re.findall(r'"(hookgate [^"]*)"', (ROOT / "tests/runbooks.rs").read_text()))
    return ran


listed = {line for lines in OTHERWISE.values() for line in pages.lines(lines)}
commands, ran = of_pages(), run_by_suites()
wrong = [f"{where}: no suite runs it, and tests/docs/commands.py has no reason: {line}" for line, where in commands.items() if line not in ran | listed]
wrong += [f"tests/docs/commands.py has a reason for what the pages do not have: {line}" for line in sorted(listed - set(commands))]
wrong += [f"tests/docs/commands.py has a reason for what a suite runs: {line}" for line in sorted(listed & ran)]
for one in wrong:
    print(f"FAILED  {one}")
if not wrong:
    print(f"ok      {len(commands)} commands of docs/operations.md and docs/alerts.md: {len(set(commands) - listed)} are run as they are "
          f"written, {len(listed)} are not, with a reason")
sys.exit(bool(wrong))
