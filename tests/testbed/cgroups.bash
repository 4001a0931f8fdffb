# Functions over the cgroups of one run of the testbed; sourced by enter and inside.
#
# All cgroups of a run begin with its name, be it below the cgroup that the caller was in or
# directly below the root of a hierarchy. A *prefix* is one such place with that name.

# Prints "mount point<TAB>own cgroup directory" for each mounted hierarchy.
hierarchies() {
    local -A point_of=() root_of=()
    local line root point type options option controllers path
    while read -r line; do
        read -r _ _ _ root point _ <<<"${line%% - *}"
        read -r type _ options <<<"${line#* - }"
        case $type in
            cgroup2) options=unified ;;
            cgroup) ;;
            *) continue ;;
        esac
        for option in ${options//,/ }; do
            point_of[$option]=$point
            root_of[$option]=$root
        done
    done </proc/self/mountinfo
    while IFS=: read -r _ controllers path; do
        option=${controllers%%,*}
        option=${option:-unified}
        point=${point_of[$option]:-}
        [[ $point ]] || continue
        path=${path#"${root_of[$option]%/}"}
        printf '%s\t%s\n' "$point" "$point${path%/}"
    done </proc/self/cgroup
}

# A new cgroup in a cpuset hierarchy accepts processes only once it has CPUs and memory.
prepare_cpuset() {
    local directory=$1 parent=${1%/*} file
    [[ -e $directory/cpuset.sched_load_balance ]] || return 0
    for file in cpuset.cpus cpuset.mems; do
        echo "$(<"$parent/$file")" >"$directory/$file"
    done
}

# Thaws every cgroup of the prefixes. A process frozen by a version 1 freezer does not even die.
thaw_cgroups() {
    local file
    while read -r file; do
        case $file in
            */freezer.state) echo THAWED >"$file" ;;
            */cgroup.freeze) echo 0 >"$file" ;;
        esac
    done < <(find_in_cgroups "$@" -name freezer.state -o -name cgroup.freeze) 2>/dev/null
}

# Removes the cgroups and the directory of a run.
remove_run() {
    local prefixes
    mapfile -t prefixes <"$1/cgroups"
    remove_cgroups "${prefixes[@]}" || true
    rm -rf --one-file-system "$1"
}

# Kills what is left in the cgroups of the prefixes and removes them, the innermost first.
remove_cgroups() {
    local pid
    remove_empty_cgroups "$@" 2>/dev/null && return
    thaw_cgroups "$@"
    while read -r pid; do
        kill -KILL "$pid" 2>/dev/null || true
    done < <(find_in_cgroups "$@" -name cgroup.procs -exec cat {} + 2>/dev/null)
    remove_empty_cgroups "$@"
}

remove_empty_cgroups() {
    find_in_cgroups "$@" -depth -type d -exec rmdir {} +
}

# find_in_cgroups PREFIX… EXPRESSION: find(1) below everything that begins with a prefix.
find_in_cgroups() {
    local found=()
    shopt -s nullglob
    while [[ ${1:-} == /* ]]; do
        found+=("$1"*)
        shift
    done
    shopt -u nullglob
    ((${#found[@]})) || return 0
    find "${found[@]}" "$@"
}
