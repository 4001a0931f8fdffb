# Where an example runs, its image and bundles, and its containers. Nothing of them outlives it.
# shellcheck shell=bash

lib=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
checkout=${lib%/examples/lib}
# shellcheck source=say.bash
source "$lib/say.bash"

runtime=runc cgroup=

# enter PROGRAM [--runtime runc|crun] [--cgroup v1|v2]: goes where there is a CRIU that works, and
# the view of the cgroups that was asked for.
enter() {
    local program
    program=$(readlink -f "$1")
    shift
    read_arguments "$@"
    if [[ ! ${OCICLE_TESTBED_ID:-} || $cgroup ]]; then
        exec "$checkout/tests/testbed/enter" ${cgroup:+--cgroup "$cgroup"} \
            "$program" --runtime "$runtime"
    fi
}

# enter_alone PROGRAM …: the same, in a network in which nothing is but lo.
enter_alone() {
    enter "$@"
    if [[ ! ${OCICLE_EXAMPLE_ALONE:-} ]]; then
        OCICLE_EXAMPLE_ALONE=yes exec unshare --net "$(readlink -f "$1")" --runtime "$runtime"
    fi
    ip link set lo up
}

read_arguments() {
    while (($#)); do
        case $1 in
            --runtime) runtime=${2:-} ;;
            --cgroup) cgroup=${2:-} ;;
            *) usage ;;
        esac
        shift $(($# > 1 ? 2 : 1))
    done
    [[ $runtime =~ ^(runc|crun)$ && $cgroup =~ ^(v1|v2|)$ ]] || usage
    # crun does not know what to do with a machine that has both versions.
    if [[ $runtime == crun && ! ${OCICLE_TESTBED_ID:-} && ! $cgroup ]]; then cgroup=v2; fi
}

usage() {
    echo "usage: run [--runtime runc|crun] [--cgroup v1|v2]" >&2
    exit 2
}

# begin EXAMPLE CONTAINER: its directory, in which the commands run, so that they can be shown with
# short names; and the name of its container.
begin() {
    scratch=$(mktemp -d "$OCICLE_SCRATCH/$1.XXXXXX")
    trap 'end $?' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    cd "$scratch"
    id=$2-${scratch##*.}
    # The testbed removes the cgroups that begin so, whatever happens to this script.
    cgroup_path=/$OCICLE_TESTBED_ID-$id
    mkdir state
    criu_flags=()
    # Else crun has CRIU save and restore the version 1 cgroups that exist behind this view.
    if [[ $runtime == crun ]]; then criu_flags+=(--manage-cgroups-mode ignore); fi
    export OCICLE_RUNTIME=$runtime
    say "With $("$runtime" --version | head -n 1), CRIU $(criu_version) and cgroup $(cgroup_view)." \
        "The commands below also get the options that keep their state in a scratch directory."
}

# A container's standard streams are never this script's: whoever reads those would wait for it.
runc() { command runc --root "$scratch/state" "$@"; }
crun() { command crun --root "$scratch/state" "$@"; }
ocicle() { command ocicle --root "$scratch/state" --store "$scratch/store" "$@"; }
ocicle-runtime() { command ocicle-runtime --root "$scratch/state" "$@"; }

criu_version() { criu --version | field Version; }

cgroup_view() {
    if [[ $(stat --file-system --format %T /sys/fs/cgroup) == cgroup2fs ]]; then echo v2; else echo v1; fi
}

# make_image PROGRAM…: busybox as sh and by some more names, programs, and the libraries that they want.
make_image() {
    local program file
    mkdir -p image/{bin,data,dev,etc,proc,sys,tmp}
    cp "$(type -P busybox)" image/bin/busybox
    for program in sh cat nc usleep; do ln -s busybox "image/bin/$program"; done
    for program; do
        cp "$(type -P "$program")" image/bin/
        ldd "$(type -P "$program")" | grep -o '/[^ ]*' | while read -r file; do
            install -D "$file" "image$file"
        done
    done
}

# make_bundle DIRECTORY FILTER [ARGUMENT…]: an overlay on the image and a config.json, of which jq's
# filter says what is special.
make_bundle() {
    local bundle=$1 filter=$2
    shift 2
    mkdir -p "$bundle"/{rootfs,upper,work}
    mount -t overlay overlay "$bundle/rootfs" \
        -o "lowerdir=image,upperdir=$bundle/upper,workdir=$bundle/work"
    jq --arg cgroup "$cgroup_path-$bundle" ".linux.cgroupsPath = \$cgroup | $filter" "$@" \
        "$lib/config.json" >"$bundle/config.json"
}

remove_bundle() {
    umount --quiet --lazy "$1/rootfs" 2>/dev/null || true
    umount --quiet --lazy "$1/network" 2>/dev/null || true
    rm -rf "$1"
}

# start BUNDLE CONTAINER: the container inherits the standard streams of what starts it.
start() {
    show_command "$runtime" run --detach --bundle "$1" "$2"
    "$runtime" --log run.log run --detach --bundle "$1" "$2" </dev/null >/dev/null 2>&1 || {
        cat run.log >&2
        return 1
    }
}

# stop CONTAINER
stop() {
    run_command "$runtime" kill "$1" KILL
    "$runtime" delete --force "$1"
}

# Waits for a condition that no event tells: until SECONDS COMMAND…
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || {
            echo "run: this did not come true: $*" >&2
            return 1
        }
        sleep 0.05
    done
}

# The process on the host that a container knows by a number: CONTAINER PID.
host_pid_in() {
    local pid
    for pid in $("$runtime" ps --format json "$1" | jq '.[]'); do
        if [[ $(field NSpid <"/proc/$pid/status" | awk '{ print $NF }') == "$2" ]]; then
            echo "$pid"
            return
        fi
    done
    return 1
}

# The value in a line `NAME: value`.
field() { sed -n "s/^$1:[[:space:]]*//p"; }

# The identifier of the open file in a checkpoint whose line in user_info.txt has this form.
identifier() { ocicle files "$1" --format user-info | grep -m 1 -e "$2" | cut -d '|' -f 2; }

# Leaves nothing, whatever has happened.
end() {
    local status=$1 container bundle
    trap - EXIT
    trap '' HUP INT TERM
    set +e
    for container in "$scratch"/state/*/; do
        container=$(basename "$container")
        {
            "$runtime" kill "$container" KILL
            "$runtime" resume "$container"
            "$runtime" delete --force "$container"
        } >/dev/null 2>&1
    done
    local job
    for job in $(jobs -p); do kill "$job" 2>/dev/null; done
    remove_cgroups
    for bundle in "$scratch"/*/rootfs; do remove_bundle "${bundle%/rootfs}"; done
    cd /
    rm -rf "$scratch"
    exit "$status"
}

# crun leaves some behind of a container that was restored.
remove_cgroups() {
    find /sys/fs/cgroup -depth -type d -path "*$cgroup_path*" -exec rmdir {} + 2>/dev/null
}
