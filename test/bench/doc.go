// Package bench measures the data path: a floating address beside KubeVirt's masquerade and beside plain routing.
package bench
