#!/usr/bin/env python3
"""What ckptd answers is understood by another implementation of varlink (the package `varlink`).

    python3 check_varlink.py SOCKET

Asks a running ckptd: reads its interface descriptions with that package's parser, and calls methods
through the client it makes of them, which checks names and types. One line for each check; ends with
the count and exit code 0 or 1.
"""
import sys

import varlink

TRAINING = "io.ckptd.Training"
SERVICE = "org.varlink.service"

passed = failed = 0


def check(name, good, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"{'ok' if good else 'NOT OK'}: {name}{': ' + detail if detail else ''}")


def error_of(call):
    try:
        call()
    except varlink.VarlinkError as error:
        return error.error(), error.parameters()
    return None, None


def main(path):
    with varlink.Client(address=f"unix:{path}") as client:
        names = client.get_interfaces()
        check("GetInfo names the interfaces", {TRAINING, SERVICE} <= set(names), ", ".join(names))
        with client.open(SERVICE) as service:
            for name in names:
                text = service.GetInterfaceDescription(name)["description"]
                interface = varlink.Interface(text)
                check(f"{name} parses", interface.name == name,
                      f"{len(interface.members)} members")
            info = service.GetInfo()
            check("GetInfo has what it must", all(info[key] for key in
                  ("vendor", "product", "version", "interfaces")))
            error, parameters = error_of(lambda: service.GetInterfaceDescription("no.such.Thing"))
            check("InterfaceNotFound", error == f"{SERVICE}.InterfaceNotFound" and
                  parameters["interface"] == "no.such.Thing")
        with client.open(TRAINING) as training:
            status = training.Status()["status"]
            check("Status", isinstance(status["step"], int) and status["state"], status["state"])
            for method, member in (("Checkpoints", "checkpoints"), ("Events", "events"),
                                   ("Metrics", "metrics"), ("Outages", "outages"),
                                   ("Config", "config")):
                check(method, member in getattr(training, method)())
            steps = []
            for reply in training.Status(interval_ms=100, _more=True):
                steps.append(reply["status"]["step"])
                if len(steps) == 3:
                    break
            check("Status streams", len(steps) == 3 and steps == sorted(steps), str(steps))
        with client.open(TRAINING) as training:
            error, parameters = error_of(lambda: training.Rollback("step-000000099-b0009"))
            check("an error of the interface", error == f"{TRAINING}.NotFound" and
                  parameters["text"])
            error, parameters = error_of(lambda: training.Events(limit=0))
            check("InvalidParameter", error == f"{SERVICE}.InvalidParameter" and
                  parameters["parameter"] == "limit")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
