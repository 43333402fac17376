package cluster

import (
	"context"
	"encoding/json"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
)

// wantedMachine is a VirtualMachineInstance that runs on another node, and the UID of the pod here that it is asked for.
type wantedMachine struct{ uid, namespace, name, pod string }

// beforePod reports whether KubeVirt said m before it had written down the pod that w asks for. It makes the pod that shall
// receive a migration first, and lists it in the machine's status a moment later; often this node has heard of the pod by
// then, and could not tell it from one that somebody else made.
func beforePod(w wantedMachine, m node.Machine) bool {
	return m.UID == w.uid && len(m.Pods) > 0 && !slices.Contains(m.Pods, w.pod)
}

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

// agentOf reads what the agent of a node says about itself. Who may write it may write Nodes: agents, the node's own
// kubelet, and administrators. It returns the zero NodeAgent for a text that is none: a peer of another version is no
// reason to fail.
func agentOf(text string) floatip.NodeAgent {
	var a floatip.NodeAgent
	if json.Unmarshal([]byte(text), &a) != nil {
		return floatip.NodeAgent{}
	}
	return a
}
