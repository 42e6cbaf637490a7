import sys, tempfile, time, faulthandler
from pathlib import Path
from tests.running.world import world
from tests.bad_input.case import *
import importlib, os
ERR = os.fdopen(os.dup(2), 'w')
def main():
    base = Path(tempfile.mkdtemp(dir="/tmp/safe"))
    made = world(base)
    names = sys.argv[1:]
    for name in names:
        mod, _, group = name.partition(":")
        for number, case in enumerate(getattr(importlib.import_module(f"tests.bad_input.{mod}"), group)):
            folder = base / f"{mod}{group}{number}"
            folder.mkdir()
            t = time.process_time(); faulthandler.dump_traceback_later(25, exit=True, file=ERR)
            place = fresh(made, folder)
            try:
                found = run_case(case, place)
                status = "ok"
                try: check(case, found)
                except AssertionError as e: status = "BAD " + (str(e)[:1500] if len(str(e))<100 else "")
                print(f"[{status}] {case.given} ({time.process_time()-t:.2f}s): {found.code} {said(found, folder)[:900]}" + (f" TEXT {found.text[:300]}" if status != "ok" else ""), flush=True)
            except BaseException as e:
                if isinstance(e, KeyboardInterrupt): raise
                import traceback
                print(f"[RAISED] {case.given} ({time.process_time()-t:.2f}s): {type(e).__name__} {str(e)[:600]}", traceback.format_exc().splitlines()[-8:-1], flush=True)
import tests.conftest
main()
