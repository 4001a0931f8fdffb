# What the snapshot drivers in this directory share: docs/drivers.md says what they are asked.
# Sourced; needs jq(1). A driver defines a function for each verb.
set -euo pipefail

# Prints a field of the request.
field() {
    jq -r --arg path "$1" 'getpath($path | split(".")) // empty' <<<"$request"
}

# Answers with JSON, made of jq's arguments.
answer() {
    jq -n "$@"
}

fail() {
    echo "$*" >&2
    exit 1
}

not_usable() {
    answer --arg why "$*" '{usable: false, why: $why}'
    exit 0
}

# Reads the request and calls the function of its verb.
serve() {
    request=$(cat)
    verb=$(field verb) path=$(field path) name=$(field name)
    [[ $(field schema) == 1 ]] || fail "the request has a schema that this driver does not know"
    [[ $name =~ ^(ocicle-[0-9a-f-]+)?$ ]] || fail "$name is no name of a snapshot"
    case $verb in
        probe | prepare | take | commit | discard | restore) "$verb" ;;
        *) fail "$verb is no verb" ;;
    esac
}

# The directory of the part below a directory that shows the whole file system.
below() {
    local point root
    point=$(field mount.point) root=$(field mount.root)
    realpath -ms -- "$1/$root/${path#"$point"}"
}
