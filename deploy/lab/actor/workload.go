package main

import (
	"context"
	"io"

	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workload does what programs do with SPIFFE: mutual TLS with whoever is of their trust domain, and tokens.
func workload(o order) (answer, error) {
	ctx, cancel := contextWithTimeout()
	defer cancel()
	address := workloadapi.WithClientOptions(workloadapi.WithAddr("unix://" + o.Server))
	if o.Do == "jwt" {
		source, err := workloadapi.NewJWTSource(ctx, address)
		if err != nil {
			return answer{}, err
		}
		defer source.Close()
		token, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: o.Remote})
		if err != nil {
			return answer{}, err
		}
		checked, err := jwtsvid.ParseAndValidate(token.Marshal(), source, []string{o.Remote})
		if err != nil {
			return answer{}, err
		}
		return answer{Names: []string{checked.ID.String()}}, nil
	}
	source, err := workloadapi.NewX509Source(ctx, address)
	if err != nil {
		return answer{}, err
	}
	svid, err := source.GetX509SVID()
	if err != nil {
		return answer{}, err
	}
	anyone := tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain())
	if o.Do == "mtls-serve" {
		return serveTLS(o, source, anyone)
	}
	defer source.Close()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", o.Remote, spiffetls.MTLSClientWithRawConfig(anyone, source, source))
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := talk(conn); err != nil {
		return answer{}, err
	}
	peer, err := spiffetls.PeerIDFromConn(conn)
	return answer{Local: conn.LocalAddr().String(), Names: []string{svid.ID.String(), peer.String()}}, err
}

// serveTLS echoes until the program ends.
func serveTLS(o order, source *workloadapi.X509Source, who tlsconfig.Authorizer) (answer, error) {
	l, err := spiffetls.ListenWithMode(context.Background(), "tcp", o.Local, spiffetls.MTLSServerWithRawConfig(who, source, source))
	if err != nil {
		return answer{}, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return answer{Local: l.Addr().String()}, nil
}
