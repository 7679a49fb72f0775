# SPDX-License-Identifier: Apache-2.0
# Completion of lashctl for fish; installed as /usr/share/fish/vendor_completions.d/lashctl.fish.

function __lashctl_jobs
    lashctl jobs 2>/dev/null | string match -rg '^(\d+)\s'
end

set -l commands status list check plan upgrade switch bind rollback verify collect discard hold release reboot jobs history monitor
set -l none "not __fish_seen_subcommand_from $commands"

complete -c lashctl -f
complete -c lashctl -l json -d 'print JSON for other programs'
complete -c lashctl -l help -s h -d 'show help'
complete -c lashctl -n $none -l version -d 'show the version'
complete -c lashctl -n $none -a status -d 'what is booted, what comes next, what is missing'
complete -c lashctl -n $none -a list -d 'bound images of a deployment'
complete -c lashctl -n $none -a check -d 'is anything newer?'
complete -c lashctl -n $none -a plan -d 'what an upgrade or a bind would fetch'
complete -c lashctl -n $none -a upgrade -d 'fetch and stage the newest host image'
complete -c lashctl -n $none -a switch -d 'follow another host image'
complete -c lashctl -n $none -a bind -d 'fetch what is missing'
complete -c lashctl -n $none -a rollback -d 'make the rollback deployment the next boot'
complete -c lashctl -n $none -a verify -d 'compare the store with what is recorded'
complete -c lashctl -n $none -a collect -d 'remove what nothing needs any more'
complete -c lashctl -n $none -a discard -d 'drop the staged deployment'
complete -c lashctl -n $none -a hold -d 'keep the staged deployment back'
complete -c lashctl -n $none -a release -d 'let the staged deployment through as it is'
complete -c lashctl -n $none -a reboot -d 'reboot into what comes next'
complete -c lashctl -n $none -a jobs -d 'list, follow and cancel jobs'
complete -c lashctl -n $none -a history -d 'jobs that were, and what ran when'
complete -c lashctl -n $none -a monitor -d 'watch what happens'
complete -c lashctl -n '__fish_seen_subcommand_from list' -x -l deployment -a 'booted staged rollback all'
complete -c lashctl -n '__fish_seen_subcommand_from plan' -x -l deployment -a 'booted staged rollback'
complete -c lashctl -n '__fish_seen_subcommand_from plan' -a 'upgrade bind'
complete -c lashctl -n '__fish_seen_subcommand_from upgrade switch' -x -l expected-digest -d 'refuse any other host image'
complete -c lashctl -n '__fish_seen_subcommand_from upgrade switch' -x -l reboot -a 'when-ready window' -d 'once it is released'
complete -c lashctl -n '__fish_seen_subcommand_from verify' -a 'booted staged rollback'
complete -c lashctl -n '__fish_seen_subcommand_from verify' -l deep -d 'read every layer again'
complete -c lashctl -n '__fish_seen_subcommand_from collect' -l dry-run -d 'only say what would go'
complete -c lashctl -n '__fish_seen_subcommand_from discard hold' -x -l expected-digest -d 'refuse when another is staged'
complete -c lashctl -n '__fish_seen_subcommand_from reboot' -x -l when -a 'now ready window' -d 'what to wait for'
complete -c lashctl -n '__fish_seen_subcommand_from reboot' -l cancel -d 'take back a reboot that waits'
complete -c lashctl -n '__fish_seen_subcommand_from bind' -a 'booted staged rollback'
complete -c lashctl -n '__fish_seen_subcommand_from rollback' -l drop-staged -d 'although that drops the staged deployment'
complete -c lashctl -n '__fish_seen_subcommand_from upgrade switch bind rollback collect discard reboot' -l no-wait -d 'return at once'
complete -c lashctl -n '__fish_seen_subcommand_from upgrade switch bind rollback verify collect discard hold release reboot' -x -l reason -d 'kept with the job'
complete -c lashctl -n '__fish_seen_subcommand_from history' -l sets -d 'which host image ran with which bound images'
complete -c lashctl -n '__fish_seen_subcommand_from history' -x -l limit -d 'at most so many'
complete -c lashctl -n '__fish_seen_subcommand_from jobs' -a '(__lashctl_jobs)'
complete -c lashctl -n '__fish_seen_subcommand_from jobs' -x -l follow -a '(__lashctl_jobs)' -d 'follow until it ends'
complete -c lashctl -n '__fish_seen_subcommand_from jobs' -x -l cancel -a '(__lashctl_jobs)' -d 'cancel it'
