// Package appear tells when it is worth to look for a file again: when something has happened in the directory that it is to
// appear in, or, as long as that is missing, when the next directory on the way to it has appeared (inotify(7)).
//
//	kubelet's directory            the deepest one that is there is watched
//	└─ pods                        for this name alone, whoever else's directories appear in it
//	   └─ UID … empty-dir
//	      └─ floatip-socket        until the first event: the pod writes here as it likes
//
// It is a hint and no more. What the kernel cannot watch, because it has no instance or watch left or the directories are
// not there, is found by looking now and then.
package appear
