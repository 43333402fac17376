package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
)

// writeNode tells the scheduler which pools this node carries, and the webhook which addresses are its own.
func (c *Cluster) writeNode(ctx context.Context, r node.Report, gone missing) error {
	o, exists, err := c.nodes.store.GetByKey(c.node)
	if err != nil || !exists {
		return err
	}
	have := o.(*metav1.PartialObjectMetadata)
	r.Own = gone.keep(ownOf(have.Annotations), r.Own, time.Now())
	labels, annotations := labelChanges(have.Labels, r.Pools), nodeChanges(have.Annotations, r)
	changes := map[string]any{}
	if len(labels) > 0 { // null would stand for the removal of all of them (RFC 7386)
		changes["labels"] = labels
	}
	if len(annotations) > 0 {
		changes["annotations"] = annotations
	}
	if len(changes) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": changes})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = c.core.Patch(types.MergePatchType).Resource("nodes").Name(c.node).Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("labels of node %s: %w", c.node, err)
	}
	c.log.Info("labelled the node", "labels", labels, "annotations", annotations)
	return nil
}

// keptOwn is how long the Node shows an address that the node has no more. A NIC that is reset, put into a bridge or down
// for repair comes back with its addresses, and nobody shall have been given one meanwhile.
const keptOwn = time.Hour

// missing is since when the node has not had addresses that its Node shows.
type missing map[netip.Addr]time.Time

// keep returns what the Node shall show, sorted: what the node has, and what it lost lately, as far as there is room.
func (m missing) keep(shown, has []netip.Addr, now time.Time) []netip.Addr {
	maps.DeleteFunc(m, func(a netip.Addr, _ time.Time) bool { return slices.Contains(has, a) || !slices.Contains(shown, a) })
	own := slices.Clone(has)
	for _, a := range shown {
		if slices.Contains(has, a) {
			continue
		}
		if _, known := m[a]; !known {
			m[a] = now
		}
		if now.Sub(m[a]) < keptOwn && len(own) < floatip.MaxProviderAddresses {
			own = append(own, a)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return own
}

// ownOf reads the annotation with the node's own addresses. What is no address is left out.
func ownOf(annotations map[string]string) (own []netip.Addr) {
	for text := range strings.SplitSeq(annotations[floatip.AnnotationProviderAddresses], ",") {
		if a, err := netip.ParseAddr(text); err == nil {
			own = append(own, a)
		}
	}
	return own
}

// nodeChanges returns what a merge patch has to set so that the node shows its own addresses and its agent. A node
// without any has not been looked at.
func nodeChanges(have map[string]string, r node.Report) map[string]any {
	changes := map[string]any{}
	var texts []string
	for _, a := range r.Own {
		texts = append(texts, a.String())
	}
	if want := strings.Join(texts, ","); want != "" && have[floatip.AnnotationProviderAddresses] != want {
		changes[floatip.AnnotationProviderAddresses] = want
	}
	agent := r.Agent
	if len(agent.MACs) == 0 {
		agent.MACs = agentOf(have[floatip.AnnotationAgent]).MACs
	}
	if want, err := json.Marshal(agent); err == nil && string(want) != "{}" && have[floatip.AnnotationAgent] != string(want) {
		changes[floatip.AnnotationAgent] = string(want)
	}
	return changes
}

// labelChanges returns what a merge patch has to set, nil for a label that goes.
func labelChanges(have map[string]string, pools map[string]bool) map[string]any {
	changes := map[string]any{}
	for pool, carried := range pools {
		if label := floatip.NodeLabelPoolPrefix + pool; carried && have[label] != "true" {
			changes[label] = "true"
		}
	}
	for label := range have {
		if pool, ours := strings.CutPrefix(label, floatip.NodeLabelPoolPrefix); ours && !pools[pool] {
			changes[label] = nil
		}
	}
	return changes
}
