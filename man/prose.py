"""What man/snapvm.1 says beside what the command line and the settings say of themselves."""

from __future__ import annotations

from snapvm.settings import DEFAULT_FILE

DESCRIPTION = (
    (
        "`snapvm take` pauses a running domain for a moment, captures its memory and an LVM "
        "snapshot of each of its disks in that pause, lets it run on, and records them "
        "together. `snapvm rollback` brings memory and disks back together, as often as you like."
    ),
    (
        "Memory and all disks are captured at one instant: always all of them or nothing. No "
        "failure leaves the domain paused, except one that says so (exit status 8). A rollback "
        "keeps both the snapshot and the disks that it replaces. Memory images are ordinary ones, "
        "which `virsh restore` or `xl restore` can start without snapvm."
    ),
)
NAMES = (
    (
        "A snapshot is written DOM@ID. ID is a UTC time stamp such as 20261122T201755Z, or the "
        "`--name` it was given: 1 to 64 letters, digits, `+`, `.` and `-`, the first a letter or "
        "digit. Any prefix that is unique among the domain's snapshots will do, except when "
        "`delete` or `rollback` is given `--yes`, or `rollback` `--dry-run`. `latest` is the "
        "newest one that was taken; it is refused while there is an unreadable record that may be "
        "newer, and so is `undo`. `latest` is also refused if `delete` or `rollback` had to wait "
        "for another snapvm, and that one has taken a newer snapshot. A snapshot is newer than all "
        "that its domain had when it was taken, whatever the clock said. `latest` and `current` "
        "cannot be given as names, nor can anything that looks like the time stamp of an unnamed "
        "snapshot."
    ),
    (
        "DOM is the name that the domain has, or had when the snapshot was taken. If snapshots of "
        "several domains fit, because one was renamed and another now has its name, nothing is "
        "done: give the uuid of the domain you mean in place of DOM, as in "
        "`snapvm show 5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f@before-upgrade`."
    ),
    (
        "`snapvm` asks before it discards anything. Without a terminal to ask on, it refuses, "
        "unless `--yes` is given."
    ),
)
EXIT_STATUS = (
    "With `--json` a failure is also printed to standard output as an object whose `error` has "
    "`kind`, `message`, `hint` and `exit_status`; beside it is whatever `check`, `doctor`, "
    "`verify` or `catalog rebuild` found, or what a `delete` or `prune` that failed or was "
    "interrupted had `deleted`, and what is `not_touched`, or what a `repair` has `repaired`. It "
    "is no failure if the reader of standard output goes away early. If standard output accepts "
    "nothing more, as on a full disk, the status is 6 although the work is done, and the message "
    "says so."
)
NOTES = (
    (
        "`sudo` drops variables such as SNAPVM_STATE_DIR: settings that are to apply to everybody "
        "belong in the settings file. A state folder is best used by one host alone. If several "
        "see it, a lock in it keeps them apart if its file system has locks for all of them (NFS "
        "has unless mounted with local_lock or nolock); work begun by another host is left to it."
    ),
    (
        "In a systemd unit, `snapvm` is best the main process, with KillMode=process: with the "
        "default, systemd would also kill the guard that lets the domain run on, and, after a "
        "rollback of a Xen domain, the xl and the QEMU that serve it."
    ),
    (
        "A rollback ends the domain and starts it again. A cluster manager, a unit with "
        "Restart=always, or whatever else starts domains that are off, has to leave this one alone "
        "meanwhile."
    ),
    (
        "docs/automation.md, which comes with the sources, has examples for cron, systemd, "
        "monitors and backups, and says what to do after exit status 7 or 8."
    ),
)
JSON = (
    (
        "What a verb prints with `--json` when it succeeds. Keys may be added. Sizes are in bytes, "
        "times in UTC."
    ),
    (
        (
            "take",
            (
                "The record, as it is in the snapshot.json of the snapshot and as "
                "`snapshot.schema.json` in snapvm's package describes it, and its `ref`, which is "
                "DOM@ID."
            ),
        ),
        (
            "list",
            (
                "An array of such records, each with the `health` of its disks, one per line. Last "
                "come those that cannot be read: they have only their `ref`, `id`, the "
                "`kind`, which is `damaged`, the `domain` and the `problem`."
            ),
        ),
        ("show", "Such a record, with its `health`."),
        (
            "rollback, undo",
            (
                "`ref`, `dry_run`, the `state` the domain is in, the `seconds` it took, `undo`, "
                "which is the ref of the former disks, `clock_set_by_seconds` (null if not set), "
                "`left_out`, an array of what did not come back, each with its `target`, `why` "
                "and, where the domain cannot write to it, `read_only`, "
                "`notes`, an array of other remarks, and `record`. With `--dry-run` only `ref`, "
                "`dry_run`, `would`, an array of what would be done, and `record`."
            ),
        ),
        ("delete", "`deleted`, an array of refs."),
        (
            "prune",
            (
                "`dry_run`, `deleted`, and `kept`: for each ref the rules that keep it. A ref that "
                "two of them would share has the uuid of the domain in place of DOM."
            ),
        ),
        (
            "check",
            (
                "`findings`, each with its `subject`, the `problem` and the `remedy`; with `--fix` "
                "also `removed`, an array of the volumes that were removed."
            ),
        ),
        (
            "doctor",
            (
                "`domain`, `versions`, `capture`, `guest_agent`, `disks`, `omitted`, `free_bytes`, "
                "`in_the_way` and `advice`."
            ),
        ),
        ("repair", "`repaired`, an array of sentences."),
        (
            "catalog rebuild",
            (
                "`dry_run`, and `rebuilt`: for each ref what is no longer known. If "
                "something cannot be rebuilt, also `findings`, each with its `subject` and the "
                "`problem`."
            ),
        ),
        (
            "verify",
            (
                "`sound`; for a libvirt image what was `checked`, for any other its `pages`, "
                "`tables` and `vcpus`, the `counts` of problems and the `findings`."
            ),
        ),
        (
            "inspect",
            (
                "An array of mappings: `va`, `frame`, the rights, and the location of the `entry`; "
                "or, for an address that is not mapped, the reason."
            ),
        ),
    ),
)
SETTINGS_ORDER = (
    "An option overrides a variable, a variable the settings file, and that the default. Settings "
    "that do not exist, and values that cannot be used, are refused; a variable that begins with "
    "SNAPVM_ but is none of these causes a warning."
)
FILES = (
    (
        str(DEFAULT_FILE),
        (
            "The settings, in TOML: the names under ENVIRONMENT in lower case and without SNAPVM_, "
            'such as `state_dir = "/srv/snapvm"`.'
        ),
    ),
    ("/var/lib/snapvm/domains/UUID/ID/", "A snapshot: snapshot.json and the memory image."),
    (
        "/var/lib/snapvm/bug-TIME-*.txt",
        (
            "The details of a bug, for a report: versions, the command line, the last commands "
            "that were run, a traceback; no memory, and nothing of a domain's definition."
        ),
    ),
    ("/run/snapvm/UUID.lock", "The lock held by the snapvm that is working on a domain."),
    (
        "/run/snapvm/VG.group.lock",
        "The lock held by the snapvm that works in a volume group.",
    ),
)
ENVIRONMENT_FIRST = (
    ("SNAPVM_CONFIG", f"The settings file to use instead of {DEFAULT_FILE}."),
    ("NO_COLOR", "If set, output is not coloured."),
)
SEE_ALSO = r".BR virsh (1),\n.BR lvs (8),\n.BR lvmthin (7)".replace(r"\n", "\n")
