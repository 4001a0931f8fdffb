# Steps, commands and checks, for a person to read. Colour only on a terminal, unless NO_COLOR is set.
# shellcheck shell=bash

steps=0 checks=0
bold='' green='' red='' blue='' reset=''
if [[ -t 1 && ! ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' blue=$'\e[34m' reset=$'\e[0m'
fi

step() {
    steps=$((steps + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$steps" "$1" "$reset"
}

# Says its arguments, which are parts of one paragraph.
say() {
    fold --spaces --width 96 <<<"$*" | sed 's/ *$//'
}

show_command() {
    printf '%s$ %s%s\n' "$blue" "$*" "$reset"
}

# Shows a command and runs it.
run_command() {
    show_command "$@"
    "$@"
}

# check SENTENCE COMMAND…: the sentence is true when the command succeeds; else the run ends.
check() {
    local sentence=$1 said
    shift
    if said=$("$@" 2>&1); then
        checks=$((checks + 1))
        printf '  %sok%s    %s\n' "$green" "$reset" "$sentence"
    else
        printf '  %sWRONG%s %s\n%s\n' "$red" "$reset" "$sentence" "$said"
        exit 1
    fi
}

equal() {
    [[ $1 == "$2" ]] || {
        printf '        %s\n   is not\n        %s\n' "$1" "$2"
        return 1
    }
}

between() {
    (($1 <= $2 && $2 <= $3))
}
