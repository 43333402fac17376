"""Gives user data to cloud-init's own code and says on standard output what came of them.

Standard input: {"scratch": a directory, "userData": {name: base64}}. Nothing is written outside of scratch, nothing is
executed, and no boot stage is run: user data are split into parts, the handlers take the parts, the merged cloud-config
goes through the command "cloud-init schema", and the module write_files writes below scratch.
"""
import argparse
import base64
import contextlib
import io
import json
import os
import sys

from cloudinit import handlers, helpers, user_data, util
from cloudinit.config import cc_write_files, schema
from cloudinit.handlers import boot_hook, cloud_config, jinja_template, shell_script

import yaml


class Source:
    """The machine as far as paths need it."""

    def get_instance_id(self):
        return "i-test"


def directory(path):
    """What the files below path hold, by their path from there."""
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            with open(full, errors="surrogateescape") as f:
                found["/" + os.path.relpath(full, path)] = f.read()
    return found


def parts(message):
    return [
        {"type": p.get_content_type(), "payload": util.fully_decoded_payload(p)}
        for p in message.walk()
        if p.get_content_maintype() != "multipart"
    ]


def registered(paths):
    """cloud-init's handlers of parts, as cloudinit/stages.py makes them."""
    arguments = {"paths": paths, "datasource": paths.datasource}
    simple = [
        cloud_config.CloudConfigPartHandler(**arguments),
        shell_script.ShellScriptPartHandler(**arguments),
        boot_hook.BootHookPartHandler(**arguments),
    ]
    found = helpers.ContentHandlers()
    for h in simple + [jinja_template.JinjaTemplatePartHandler(sub_handlers=simple, **arguments)]:
        found.register(h, overwrite=False)
    return found


def distinct(known):
    """The handlers, each once: some have several content types, and forget at each end."""
    return list({id(h): h for _, h in known.items()}.values())


def handle(message, paths):
    """Takes the parts and returns the content types that somebody cared for."""
    known = registered(paths)
    folder = paths.get_ipath("handlers")
    os.makedirs(folder)
    sys.path.insert(0, folder)
    data = {
        "handlers": known,
        "handlerdir": folder,
        "data": None,
        "frequency": "once-per-instance",
        "handlercount": 0,
        "excluded": [],
    }
    for h in distinct(known):
        handlers.call_begin(h, None, data["frequency"])
    handlers.walk(message, handlers.walker_callback, data=data)
    for h in distinct(known):
        handlers.call_end(h, None, data["frequency"])
    sys.path.remove(folder)
    for name in [m for m in sys.modules if m.startswith("part-handler-")]:
        del sys.modules[name]
    return sorted(known.registered)


def check_schema(path):
    """The subcommand "cloud-init schema --config-file path", in this process. Returns its complaint, or ""."""
    output = io.StringIO()
    arguments = schema.get_parser(argparse.ArgumentParser()).parse_args(["--config-file", path])
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            schema.handle_schema_args("schema", arguments)
    except SystemExit as e:
        return "%s %s" % (output.getvalue(), e)
    return "" if "Valid" in output.getvalue() else output.getvalue()


def write_files(config, root):
    original = util.write_file
    util.write_file = lambda path, *a, **k: original(root + path, *a[:1])
    util.chownbyname = lambda *a: None
    try:
        cc_write_files.write_files("write_files", config.get("write_files") or [], "root:root")
    finally:
        util.write_file = original
    return directory(root)


def process(blob, scratch):
    paths = helpers.Paths({"cloud_dir": scratch + "/cloud", "run_dir": scratch + "/run"}, ds=Source())
    util.write_file(paths.get_runpath("instance_data_sensitive"), '{"v1": {"cloud_name": "nocloud"}}')
    message = user_data.UserDataProcessor(paths).process(blob)
    result = {"parts": parts(message), "types": handle(message, paths)}
    merged = paths.get_ipath("cloud_config")
    result["schema"] = check_schema(merged) if os.path.getsize(merged) else ""
    with open(merged) as f:
        config = yaml.safe_load(f) or {}
    result["config"] = config
    result["scripts"] = directory(paths.get_ipath_cur("scripts"))
    result["boothooks"] = directory(paths.get_ipath("boothooks"))
    result["files"] = write_files(config, scratch + "/root")
    return result


def main():
    request = json.load(sys.stdin)
    boot_hook.subp.subp = lambda *a, **k: None
    results = {}
    for name, data in request["userData"].items():
        results[name] = process(base64.b64decode(data or ""), os.path.join(request["scratch"], name))
    json.dump(results, sys.stdout)


main()
