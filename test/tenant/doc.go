// Package tenant tests what somebody gains who may do everything in a namespace of his own, and writes there what looks
// as if floatip or KubeVirt had written it: nothing. Real API server, KubeVirt's controllers, kubelet, sidecar and agent
// run; after each attempt the ledger, the FloatingIP objects and the pods say what they said before.
package tenant
