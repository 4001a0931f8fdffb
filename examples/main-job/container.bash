# The container of the demo: its image and bundle, its life, and what can be asked of it.
# shellcheck shell=bash

# Its directories. The commands run in $scratch, so that they can be shown with short names.
make_scratch() {
    scratch=$(mktemp -d "$OCICLE_SCRATCH/main-job.XXXXXX")
    trap 'end $?' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    cd "$scratch"
    id=journal-${scratch##*.}
    # The testbed removes the cgroups that begin so, whatever happens to this script.
    cgroup_path=/$OCICLE_TESTBED_ID-$id
    rootfs=$scratch/bundle/rootfs
    images=$scratch/store/$id/v1
    frozen=$scratch/frozen
    mkdir state
    # SQLite locks files.
    criu_flags=(--file-locks)
    # Else crun has CRIU save and restore the version 1 cgroups that exist behind this view.
    if [[ $runtime == crun ]]; then criu_flags+=(--manage-cgroups-mode ignore); fi
    export OCICLE_RUNTIME=$runtime
    make_image
}

# A container's standard streams are never this script's: whoever reads those would wait for it.
runc() { command runc --root "$scratch/state" "$@"; }
crun() { command crun --root "$scratch/state" "$@"; }
ocicle() { command ocicle --root "$scratch/state" --store "$scratch/store" "$@"; }

criu_version() { criu --version | field Version; }

cgroup_view() {
    if [[ $(stat --file-system --format %T /sys/fs/cgroup) == cgroup2fs ]]; then echo v2; else echo v1; fi
}

# A shell, the workload, and the libraries that it wants.
make_image() {
    local workload file
    workload=$(dirname "$(type -P ocicle)")/workload
    [[ -x $workload ]] || {
        echo "run: there is no $workload: use make demo" >&2
        exit 1
    }
    mkdir -p image/{bin,data,dev,etc,proc,sys,tmp}
    cp "$(type -P busybox)" image/bin/sh
    cp "$workload" image/bin/workload
    ldd "$workload" | grep -o '/[^ ]*' | while read -r file; do install -D "$file" "image$file"; done
    echo "the text of the image" >image/etc/motd
}

# An overlay on the image, a network with lo up, a config.json.
make_bundle() {
    mkdir -p bundle/{rootfs,upper,work}
    mount -t overlay overlay "$rootfs" -o lowerdir=image,upperdir=bundle/upper,workdir=bundle/work
    touch bundle/network
    unshare --net=bundle/network ip link set lo up
    jq --arg network "$scratch/bundle/network" --arg cgroup "$cgroup_path" \
        '.linux.cgroupsPath = $cgroup
            | .linux.namespaces += [{type: "network", path: $network}]' \
        "$here/config.json" >bundle/config.json
}

remove_bundle() {
    umount --quiet --lazy bundle/rootfs bundle/network 2>/dev/null || true
    rm -rf bundle
}

# The workload says that it is ready by opening a file for writing. Here that is a pipe with a name,
# and whoever opens it to read gets on when the other side does.
start_container() {
    mkfifo "$rootfs/data/ready"
    show_command "$runtime" run --detach --bundle bundle "$id"
    "$runtime" --log run.log run --detach --bundle bundle "$id" </dev/null >/dev/null 2>&1 || {
        cat run.log >&2
        return 1
    }
    timeout 30 cat "$rootfs/data/ready" || {
        cat "$rootfs/data/error.log" >&2
        return 1
    }
}

stop_container() {
    run_command "$runtime" kill "$id" KILL
    "$runtime" delete --force "$id"
}

pause_container() { "$runtime" pause "$id"; }
resume_container() { "$runtime" resume "$id"; }

# Asks the workload on its control socket. It answers between two turns, when memory, log and
# database agree.
ask() {
    workload_of_the_host ask "$rootfs/data/control" "$@"
}

workload_of_the_host() { "$scratch/image/bin/workload" "$@"; }

counter() { ask status | jq .counter; }

tcp_counter() { nsenter --net=bundle/network busybox nc 127.0.0.1 7000 </dev/null; }

# Waits until the container has come that far. Every answer takes one of its turns.
run_until() {
    local end=$((SECONDS + 30))
    while (($(counter) < $1)); do
        ((SECONDS < end)) || {
            echo "run: the container does not go on" >&2
            return 1
        }
    done
}

# The snapshot in the checkpoint, layer by layer: what the files were while all was frozen.
unpack_snapshot() {
    local layer
    mkdir "$frozen"
    for layer in "$images"/ocicle-rootfs.*.tar; do
        tar -C "$frozen" -xf "$layer"
    done
}

# The log as of a status, for lines come all the time.
log_until() { head -c "$(jq .log_size <<<"$1")" "$rootfs/data/log"; }

last_number() { tail -n 1 | cut -d ' ' -f 2; }

# Whether a log's lines are 1, 2, 3 and so on.
is_counted_up() {
    [[ $1 ]] && awk '$2 != NR { print "line " NR ": " $0; exit 1 }' <<<"$1"
}

# Whether the lines of a file, but for the first, go on from the freeze, by turns of A and B, and
# come at least to LAST: FILE LAST.
is_continued() {
    awk -v at="$frozen_at" -v last="$2" '
        NR > 1 && ($2 != at + NR - 1 || $1 == writer) { print "line " NR ": " $0; wrong = 1; exit }
        { writer = $1 }
        END { exit wrong || at + NR - 1 < last }' "$1"
}

# The first rows of the database below a directory: DIR COUNT.
rows() {
    sqlite3 "$1/data/db.sqlite" "select number, writer from lines where number <= $2 order by number"
}

# Lines of user_info.txt: the log that both processes hold, and the log that one holds.
shared_log() { logs | grep , ; }
second_log() { logs | grep -v , ; }
logs() { ocicle files "$id@v1" --format user-info | grep '|/data/log|'; }

# The process on the host that the container knows by a number.
host_pid() {
    local pid
    for pid in $("$runtime" ps --format json "$id" | jq '.[]'); do
        if [[ $(field NSpid <"/proc/$pid/status" | awk '{ print $NF }') == "$1" ]]; then
            echo "$pid"
            return
        fi
    done
    return 1
}

# Of a pid:fd of the container.
position_of() { field pos <"/proc/$(host_pid "${1%:*}")/fdinfo/${1#*:}"; }
target_of() { readlink "/proc/$(host_pid "${1%:*}")/fd/${1#*:}"; }

# The value in a line `NAME: value`.
field() { sed -n "s/^$1:[[:space:]]*//p"; }

# Leaves nothing, whatever has happened.
end() {
    local status=$1
    trap - EXIT
    trap '' HUP INT TERM
    set +e
    "$runtime" state "$id" >/dev/null 2>&1 && {
        "$runtime" kill "$id" KILL
        "$runtime" resume "$id"
        "$runtime" delete --force "$id"
    } >/dev/null 2>&1
    remove_cgroups
    remove_bundle
    cd /
    rm -rf "$scratch"
    exit "$status"
}

# crun leaves some behind of a container that was restored.
remove_cgroups() {
    find /sys/fs/cgroup -depth -type d -path "*$cgroup_path*" -exec rmdir {} + 2>/dev/null
}
