// Package cluster connects the agent with the API server: informers become a node.View, a node.Report becomes the
// status of FloatingIP objects and the labels of the node.
//
// It watches the pods of its own node, the VirtualMachineInstances that run there (KubeVirt's label
// kubevirt.io/nodeName), FloatingIP and FloatingIPPool objects, and the metadata of all nodes.
// Objects are stripped before they are stored, and only the types that are needed are known to the decoder: an agent runs
// on every node. When the API server is away, the last objects stay, and writing waits.
//
// It decides nothing about addresses: what it says of a pod or of a machine is what stands there.
package cluster
