package podlink

import (
	"fmt"

	"github.com/google/nftables"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/nftrule"
)

// readRules returns the text of all chains and rules of the table, as layout.text does.
func (n *Node) readRules(conn *nftables.Conn, l layout) (string, error) {
	chains, err := conn.ListChainsOfTableFamily(l.table.Family)
	if err != nil {
		return "", fmt.Errorf("list chains of table %s: %w", tableName, err)
	}
	socket, err := nftrule.Dial(n.ns)
	if err != nil {
		return "", err
	}
	defer socket.Close()
	rules, err := nat.RuleTexts(socket, l.table)
	if err != nil {
		return "", fmt.Errorf("read rules of table %s: %w", tableName, err)
	}
	texts := map[string]string{}
	for _, k := range chains {
		if k.Table.Name != tableName {
			continue
		}
		var hook *nftables.ChainHook
		var priority nftables.ChainPriority
		if k.Hooknum != nil {
			hook, priority = k.Hooknum, *k.Priority
		}
		texts[k.Name] = chainText(k.Name, k.Type, hook, priority, rules[k.Name])
	}
	return joined(texts), nil
}

// addRules adds the rules of all chains, which exist and are empty, in one transaction.
func (n *Node) addRules(l layout) error {
	conn, err := nftrule.Dial(n.ns)
	if err != nil {
		return err
	}
	defer conn.Close()
	var chains []nftrule.Chain
	for _, c := range l.chains {
		chains = append(chains, nftrule.Chain{Name: c.Name, Rules: c.Rules})
	}
	return nftrule.Write(conn, l.table, chains)
}
