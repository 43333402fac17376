// Package kubevirt holds the words of KubeVirt that floatip reads: the network part of a VirtualMachineInstance, and the
// labels, annotations and accounts by which KubeVirt's own objects are told from look-alikes.
//
// The types are views: they decode the few fields that floatip needs and skip the rest, so that a cache of every VMI of
// a large cluster stays small and a newer KubeVirt may add or change what it likes. They are never written back.
//
// +kubebuilder:object:generate=true
package kubevirt
