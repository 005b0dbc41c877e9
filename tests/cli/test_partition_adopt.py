"""`shardwright partition adopt`: what people see, the same with --json, and what it says where it refuses."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from fix_catalog import Found
from fix_cli import Ran
from fix_handmade import PARENT, attached, leaf, run


def test_look_then_adopt(found: Callable[..., Found], cli: Callable[..., Ran], tmp_path: Path) -> None:
    cluster = found(2)
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}
    for name in ("s1", "s2"):
        run(
            cluster,
            name,
            PARENT,
            leaf("old days", "2001-01-01", "2002-01-01"),
            "CREATE TABLE rest PARTITION OF events DEFAULT",
        )
        run(cluster, name, "INSERT INTO events (user_id, at) VALUES (1, now())")
    lacking = cli("partition", "adopt", "events", "--dry-run", "--json", env=env)
    assert (lacking.code, lacking.json["error"]["code"]) == (2, "SW108")
    assert lacking.json["error"]["fix"] == '--every "1 year", as the newest partition has it'
    asked = ["partition", "adopt", "events", "--every", "1 month", "--keep", "2 years"]
    shown = cli(*asked, "--dry-run", env=env).ok().out
    assert "public.events would be kept by this policy, as asked for: column at, every 1 month, keep 2 years" in shown
    assert "over by the policy, and the first tick detaches them: old days" in shown
    told = cli(*asked, "--dry-run", "--json", env=env).ok().json
    assert told["shards"]["s1"]["default"]["rows"] == 1
    assert told["shards"]["s1"]["take"] == ["old days"]
    [again] = told["next_steps"]
    assert shlex.split(again)[-2:] == ["--fingerprint", told["fingerprint"]]
    stale = cli(*asked, "--fingerprint", "0123456789abcdef", "--json", env=env)
    assert (stale.code, stale.json["error"]["code"]) == (4, "SW309")
    assert attached(cluster, "s1")["old days"][3] is None
    done = cli(*shlex.split(again)[1:], env=env).ok().out
    assert "public.events is ours: 1 month by at" in done
    assert all(one[4] == "attached" for one in attached(cluster, "s2").values())
    ours = cli(*asked, "--json", env=env)
    assert (ours.code, ours.json["error"]["code"]) == (2, "SW109")
    file = tmp_path / "tables.toml"
    file.write_text("")
    both = cli("partition", "adopt", "events", "--declared", file, "--every", "1 day", env=env)
    assert both.code == 2
    assert "--declared says it all" in both.err


def test_reasons_as_json(found: Callable[..., Found], cli: Callable[..., Ran]) -> None:
    cluster = found(1)
    run(cluster, "s1", "CREATE TABLE events (at timestamptz) PARTITION BY LIST (at)")
    refused = cli("partition", "adopt", "events", "--json", env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog})
    assert refused.code == 3
    [reason] = refused.json["error"]["facts"]["reasons"]
    assert reason["shard"] == "s1"
    assert "by LIST" in reason["what"]
    assert reason["fix"]
