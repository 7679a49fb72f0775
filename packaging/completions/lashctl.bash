# SPDX-License-Identifier: Apache-2.0
# Completion of lashctl for bash; installed as /usr/share/bash-completion/completions/lashctl.

_lashctl_jobs() {
    lashctl jobs 2>/dev/null | awk 'NR > 1 && $1 ~ /^[0-9]+$/ { print $1 }'
}

_lashctl() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} != -* ]]; then
            command=${COMP_WORDS[i]}
            break
        fi
    done
    local words=""
    case $before in
        --deployment) words="booted staged rollback"; [[ $command == list ]] && words+=" all" ;;
        --reboot) words="when-ready window" ;;
        --when) words="now ready window" ;;
        --follow | --cancel) words=$(_lashctl_jobs) ;;
        --reason | --expected-digest | --limit) return ;;
        *)
            case $command in
                "") words="status list check plan upgrade switch bind rollback verify collect discard hold release reboot jobs history monitor --json --help --version" ;;
                status | monitor | check) words="--json --help" ;;
                list) words="--deployment --json --help" ;;
                plan) words="upgrade bind --deployment --json --help" ;;
                upgrade | switch) words="--expected-digest --reboot --no-wait --reason --json --help" ;;
                bind) words="booted staged rollback --no-wait --reason --json --help" ;;
                rollback) words="--drop-staged --no-wait --reason --json --help" ;;
                verify) words="booted staged rollback --deep --reason --json --help" ;;
                collect) words="--dry-run --no-wait --reason --json --help" ;;
                discard) words="--expected-digest --no-wait --reason --json --help" ;;
                hold) words="--expected-digest --reason --json --help" ;;
                release) words="--reason --json --help" ;;
                reboot) words="--when --cancel --no-wait --reason --json --help" ;;
                history) words="--sets --limit --json --help" ;;
                jobs) words="--follow --cancel --json --help"; [[ $word != -* ]] && words+=" $(_lashctl_jobs)" ;;
            esac
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

complete -F _lashctl lashctl
