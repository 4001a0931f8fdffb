# The container of the demo: its image and bundle, its life, and what can be asked of it.
# shellcheck shell=bash

# Its directories and its image.
prepare() {
    begin main-job journal
    rootfs=$scratch/bundle/rootfs
    images=$scratch/store/$id/v1
    frozen=$scratch/frozen
    # SQLite locks files.
    criu_flags+=(--file-locks)
    local workload
    workload=$(dirname "$(type -P ocicle)")/workload
    [[ -x $workload ]] || {
        echo "run: there is no $workload: use make demo" >&2
        exit 1
    }
    make_image "$workload"
    echo "the text of the image" >image/etc/motd
}

# An overlay on the image, a network with lo up, a config.json.
make_container() {
    mkdir bundle
    touch bundle/network
    unshare --net=bundle/network ip link set lo up
    make_bundle bundle '.process.args = ["workload", "journal", "/data"]
        | .linux.namespaces += [{type: "network", path: $network}]' \
        --arg network "$scratch/bundle/network"
}

# The workload says that it is ready by opening a file for writing. Here that is a pipe with a name,
# and whoever opens it to read gets on when the other side does.
start_container() {
    mkfifo "$rootfs/data/ready"
    start bundle "$id"
    timeout 30 cat "$rootfs/data/ready" || {
        cat "$rootfs/data/error.log" >&2
        return 1
    }
}

stop_container() { stop "$id"; }

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
    for layer in "$images"/ocicle-rootfs.*.tar.zst; do
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

# The same of the container, from a copy. SQLite would take the container's own index for one that
# nobody uses, and cut it: a POSIX lock on a file that is mapped too does not survive CRIU, which
# closes the descriptor of the mapping after it has set the lock (restore_one_alive_task in
# criu/cr-restore.c, restore_mapping in criu/pie/restorer.c).
rows_of_container() {
    local copy
    copy=$(mktemp -d "$scratch/rows.XXXXXX")
    mkdir "$copy/data"
    pause_container
    cp "$rootfs"/data/db.sqlite{,-wal} "$copy/data"
    resume_container
    rows "$copy" "$1"
}

# Lines of user_info.txt: the log that both processes hold, and the log that one holds.
shared_log() { logs | grep , ; }
second_log() { logs | grep -v , ; }
logs() { ocicle files "$id@v1" --format user-info | grep '|/data/log|'; }

# Of a pid:fd of the container.
position_of() { field pos <"/proc/$(host_pid_in "$id" "${1%:*}")/fdinfo/${1#*:}"; }
target_of() { readlink "/proc/$(host_pid_in "$id" "${1%:*}")/fd/${1#*:}"; }
