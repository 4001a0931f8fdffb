# Runs one child as if it had been exec'ed; sourced by enter and init.

# supervise COMMAND…: passes terminal, signals and exit status through. Sets `status`.
supervise() {
    local signal signalled child
    # A child started with & ignores the keyboard's signals unless told otherwise.
    env --default-signal=INT,QUIT "$@" <&0 &
    child=$!
    for signal in HUP INT QUIT TERM USR1 USR2; do
        # shellcheck disable=SC2064 # this child, this signal
        trap "signalled=yes; pass_signal $signal $child" "$signal"
    done
    while :; do
        signalled=
        status=0
        # Quiet, for the shell would report a child that died by a signal.
        { wait "$child" || status=$?; } 2>/dev/null
        [[ $signalled ]] || break
    done
    trap '' HUP INT QUIT TERM USR1 USR2
}

# Who gets the signal in place of the child; enter replaces this.
pass_signal() {
    kill -s "$1" "$2" 2>/dev/null || true
}
