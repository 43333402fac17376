// Package process runs the rig's programs: each in a network namespace, with its output in a file, in a session of its
// own, and noted in a state file from which Down ends them even if the rig itself was killed.
//
// It does not restart anything, and it knows nothing of what the programs do. A network namespace is named by a path
// such as /run/netns/green; only the network is entered, so that /sys, the cgroups and the mounts stay those of the
// machine (`ip netns exec` would mount /sys anew and hide the cgroups).
package process
