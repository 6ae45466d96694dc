package daemon

import (
	"context"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bulkhead-mesh/bulkhead/control/api"
)

// collector turns the status into metrics when they are asked for.
type collector struct{ local }

var (
	metricInfo    = prometheus.NewDesc("bulkhead_info", "This host.", []string{"mesh", "host", "version", "phase"}, nil)
	metricPolicy  = prometheus.NewDesc("bulkhead_policy_version", "Policy version in force.", nil, nil)
	metricAge     = prometheus.NewDesc("bulkhead_policy_age_seconds", "Time since the policy was issued.", nil, nil)
	metricHosts   = prometheus.NewDesc("bulkhead_hosts", "Hosts of the mesh.", []string{"state"}, nil)
	metricPeers   = prometheus.NewDesc("bulkhead_peers", "Hosts that the tunnel has.", nil, nil)
	metricDrops   = prometheus.NewDesc("bulkhead_dropped_packets_total", "Packets that the firewall dropped.", []string{"reason"}, nil)
	metricRefused = prometheus.NewDesc("bulkhead_refused_total", "Records, policies and messages refused.", []string{"reason"}, nil)
	metricExpiry  = prometheus.NewDesc("bulkhead_certificate_expiry_timestamp_seconds", "End of this host's certificate.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(metricInfo, 1, s.Mesh, s.Host, s.Version, s.Phase)
	gauge(metricPolicy, float64(s.PolicyVersion))
	gauge(metricAge, float64(s.PolicyAge))
	gauge(metricHosts, float64(s.Hosts.Known), "known")
	gauge(metricHosts, float64(s.Hosts.Alive), "alive")
	gauge(metricPeers, float64(len(s.Peers)))
	gauge(metricExpiry, float64(s.CertificateExpires.Unix()))
	for desc, counts := range map[*prometheus.Desc]map[string]uint64{metricDrops: s.Drops, metricRefused: s.Refused} {
		for reason, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), reason)
		}
	}
}

// serveMetrics serves Prometheus metrics at /metrics.
func (d *daemon) serveMetrics(ctx context.Context) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector{local{d}}); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.config.MetricsListen)
	if err != nil {
		// Enforcement matters more than numbers about it.
		d.log.Warn("metrics are off", "error", err)
		return nil
	}
	return api.Serve(ctx, listener, mux, d.log)
}
