package cluster

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
)

// wantedMachine is a VirtualMachineInstance that runs on another node.
type wantedMachine struct{ uid, namespace, name string }

func askMachine(client rest.Interface) func(context.Context, wantedMachine) (node.Machine, error) {
	return func(ctx context.Context, w wantedMachine) (node.Machine, error) {
		var m machine
		err := client.Get().Namespace(w.namespace).Resource("virtualmachineinstances").Name(w.name).Do(ctx).Into(&m)
		switch {
		case apierrors.IsNotFound(err):
			return node.Machine{}, nil
		case err != nil:
			return node.Machine{}, err
		case string(m.UID) != w.uid:
			return node.Machine{}, nil
		}
		return machineOf(&m), nil
	}
}

// askAgent reads what the agent of a node says about itself. Who may write it may write Nodes: agents, the node's own
// kubelet, and administrators.
func askAgent(client rest.Interface) func(context.Context, string) (floatip.NodeAgent, error) {
	return func(ctx context.Context, name string) (floatip.NodeAgent, error) {
		var n corev1.Node
		err := client.Get().Resource("nodes").Name(name).Do(ctx).Into(&n)
		if apierrors.IsNotFound(err) {
			return floatip.NodeAgent{}, nil
		}
		if err != nil {
			return floatip.NodeAgent{}, err
		}
		return agentOf(n.Annotations[floatip.AnnotationAgent]), nil
	}
}

// agentOf returns the zero NodeAgent for a text that is none: a peer of another version is no reason to fail.
func agentOf(text string) floatip.NodeAgent {
	var a floatip.NodeAgent
	if json.Unmarshal([]byte(text), &a) != nil {
		return floatip.NodeAgent{}
	}
	return a
}

// addPeers adds the agents of the nodes that machines of this one migrate to, or come from.
func (c *Cluster) addPeers(v *node.View) {
	wanted := map[string]bool{}
	for _, m := range v.Machines {
		if m.Migration.Failed {
			continue
		}
		switch c.node {
		case m.Migration.SourceNode:
			wanted[m.Migration.TargetNode] = true
		case m.Migration.TargetNode:
			wanted[m.Migration.SourceNode] = true
		}
	}
	delete(wanted, "")
	delete(wanted, c.node)
	for name, answer := range c.peers.answers(wanted) {
		if answer != nil {
			v.Peers[name] = *answer
		}
	}
}
